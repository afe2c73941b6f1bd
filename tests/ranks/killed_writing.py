"""Started by `launching.launch`: the last process is killed while it writes its part of the second checkpoint.

torchrun --standalone --nproc_per_node 2 tests/ranks/killed_writing.py FOLDER
"""

from __future__ import annotations

import os
import signal
import sys

import fsspec
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from imagen_pytorch.checkpoints import sharded


def main() -> None:
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    fs, plain = fsspec.filesystem("file"), {"version": "1"}
    tensors = {"model/weight": distribute_tensor(torch.arange(6.0), mesh, [Shard(0)])}
    sharded.write_sharded(fs, f"{sys.argv[1]}/checkpoint.1", tensors, plain)
    if dist.get_rank() == dist.get_world_size() - 1:
        whole = sharded.write_safetensors

        def dying(*args: object) -> None:
            whole(*args)
            os.kill(os.getpid(), signal.SIGKILL)

        sharded.write_safetensors = dying
    sharded.write_sharded(fs, f"{sys.argv[1]}/checkpoint.2", tensors, plain)


if __name__ == "__main__":
    main()
