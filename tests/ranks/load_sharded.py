"""Started by `launching.launch`: any number of processes load a checkpoint that another number wrote, or write it.

torchrun --standalone --nproc_per_node 3 tests/ranks/load_sharded.py FOLDER [WRITE]
"""

from __future__ import annotations

import sys

import fsspec
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from imagen_pytorch.checkpoints.sharded import ShardedCheckpoint, read_sharded, write_sharded


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    fs = fsspec.filesystem("file")
    saved = ShardedCheckpoint(fs, sys.argv[1])
    targets = {
        name: distribute_tensor(torch.full(shape, -1.0), mesh, [Shard(0)]) if shape else torch.tensor(-1.0)
        for name, shape in saved.shapes.items()
    }
    saved.load(targets)
    contents = read_sharded(fs, sys.argv[1])
    for name, target in targets.items():
        first, _, rest = name.partition("/")
        expected = contents[first][rest]
        assert torch.equal(target.full_tensor() if expected.ndim else target, expected), name
    if len(sys.argv) > 2:
        store = fsspec.filesystem("dir", path=sys.argv[2], fs=fs)  # written to as to an object store
        write_sharded(store, "checkpoint.2", targets, saved.plain())
    dist.barrier()  # a process that goes while others still talk has been seen to abort, once in some tens of runs
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
