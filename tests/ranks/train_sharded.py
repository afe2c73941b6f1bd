"""Started by `launching.launch`: a network trained in shards is the network that one process trains on all pictures.

torchrun --standalone --nproc_per_node 2 tests/ranks/train_sharded.py FOLDER [pieces] [checkpointing] [levels] [video]
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import fsspec
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from toys import CAPTIONS, SMALL, WORDS, pictures, small_imagen

from imagen_pytorch import Imagen, Unet3D
from imagen_pytorch.checkpoints.contents import local_part
from imagen_pytorch.checkpoints.sharded import ShardedCheckpoint, write_sharded
from imagen_pytorch.training.ema import make_average
from imagen_pytorch.training.fsdp import (
    gathered,
    gradient_norm,
    load_optimizer_state,
    module_tensors,
    optimizer_state,
    shard,
)
from imagen_pytorch.training.optim import make_optimizer

FOLDER, CHOICES = sys.argv[1], set(sys.argv[2:])
PIECES = 2 if "pieces" in CHOICES else 1
STEPS = 2


@dataclass
class Training:
    model: Imagen
    average: nn.Module
    optimizer: torch.optim.Optimizer
    sharded: bool

    @property
    def unet(self) -> nn.Module:
        return self.model.unets[0]

    def step(self, number: int) -> tuple[float, float]:
        """Loss and gradient norm of one update."""
        rank, world = (dist.get_rank(), dist.get_world_size()) if self.sharded else (0, 1)
        images = pictures(4, 8, seed=number)
        if "video" in CHOICES:
            images = images[:, :, None].repeat(1, 1, 4, 1, 1) * torch.linspace(0.5, 1, 4)[:, None, None]
        generator = torch.Generator().manual_seed(number)
        batch = self.model.training_batch(images, texts=CAPTIONS, unet_number=1, generator=generator)
        rows = len(batch) // world
        batch = batch.rows(slice(rank * rows, (rank + 1) * rows))
        pieces = batch.split(max(1, rows // PIECES))
        total = torch.zeros(())
        for index, piece in enumerate(pieces):
            with self.unet.no_sync() if self.sharded and index < len(pieces) - 1 else nullcontext():
                loss = self.model.loss(piece) / len(pieces)
                loss.backward()
            total += loss.detach()
        if self.sharded:
            dist.all_reduce(total)
        norm = gradient_norm(self.unet.parameters())
        torch.nn.utils.clip_grads_with_norm_(self.unet.parameters(), 0.2, norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update()
        return float(total) / world, float(norm)

    def parts(self) -> list[Tensor]:
        """What this process holds of weights, averages and moments."""
        moments = (item for state in self.optimizer.state.values() for item in state.values())
        return [
            local_part(item.detach())[0] for item in (*self.unet.parameters(), *self.average.parameters(), *moments)
        ]

    def tensors(self) -> tuple[dict[str, Tensor], dict]:
        state = optimizer_state(self.optimizer)
        moments, rest = {}, {"state": {}, "param_groups": state["param_groups"]}
        for index, entries in state["state"].items():
            moments |= {f"optim0/state/{index}/{key}": item for key, item in entries.items() if key != "step"}
            rest["state"][index] = {"step": entries["step"]}
        named = {"model/": module_tensors(self.unet), "ema/0.": module_tensors(self.average)}
        return {**{head + name: item for head, part in named.items() for name, item in part.items()}, **moments}, rest


def begun(mesh: object = None) -> Training:
    torch.manual_seed(0)
    # groups of several channels: a bias before a norm of its own channel has no gradient but rounding
    options = {"self_cond": True, "resnet_groups": 2, "layer_attns": True, "layer_cross_attns": True}
    if "levels" not in CHOICES:
        options |= {"dim_mults": (1,), "num_resnet_blocks": 0, "final_resnet_block": False, "mid_cross_attn": False}
    options |= {"attn_pool_text": "levels" in CHOICES, "gradient_checkpointing": "checkpointing" in CHOICES}
    if "video" in CHOICES:
        network = Unet3D(**{**SMALL, **options})
        model = Imagen(network, image_sizes=8, text_encoder_name=WORDS, timesteps=2)
    else:
        model = small_imagen((8,), unet=options)
    with torch.no_grad():  # much of a new network is zero, and then so is the gradient of the rest
        for item in model.parameters():
            item += 0.05 * torch.randn(item.shape)
    unet = model.unets[0]
    average = make_average(unet, {"update_after_step": 1, "update_every": 1, "beta": 0.9})
    if mesh is not None:
        shard(unet, mesh)
        shard(average.ema_model, mesh)
    # a large epsilon: rounding is not blown up to whole steps where the gradient is zero
    settings = {"lr": 1e-3, "eps": 1e-3, "beta1": 0.9, "beta2": 0.99, "group_wd_params": True}
    return Training(model, average, make_optimizer(unet, settings), mesh is not None)


def compare(sharded: Training, alone: Training | None) -> None:
    tensors, rest = sharded.tensors()
    found = gathered(tensors, keep=alone is not None)
    if alone is None:
        return
    expected, plain = alone.tensors()
    assert list(found) == list(expected) and str(rest) == str(plain)
    for name, item in expected.items():
        assert item.shape == found[name].shape, name
        tolerance = 1e-6 if name.startswith("ema") else 1e-5
        torch.testing.assert_close(
            found[name], item, atol=tolerance, rtol=tolerance, msg=lambda text, at=name: at + text
        )


def check_memory(training: Training) -> None:
    for items in (training.unet.parameters(), training.average.ema_model.parameters()):
        shapes = [(item.to_local().numel(), item.numel()) for item in items if isinstance(item, DTensor)]
        held, whole = (sum(counts) for counts in zip(*shapes, strict=True))
        assert whole == sum(item.numel() for item in training.unet.parameters())
        assert abs(held / whole - 1 / dist.get_world_size()) < 0.05, held / whole


def check_nan(training: Training) -> None:
    """One gradient that is not a number, on one process, is seen by all."""
    parameters = list(training.unet.parameters())
    for item in parameters:
        item.grad = torch.ones_like(item)
    norm = gradient_norm(parameters)
    assert abs(float(norm) ** 2 / sum(item.numel() for item in parameters) - 1) < 1e-4
    if dist.get_rank() == 1:
        local = (local_part(item.grad)[0] for item in parameters)
        with torch.no_grad():
            next(item for item in local if item.numel()).view(-1)[0] = torch.nan
    assert not torch.isfinite(gradient_norm(parameters))
    training.optimizer.zero_grad()


def compare_resumed(sharded: Training, resumed: Training, saved: ShardedCheckpoint) -> None:
    """A new run goes on from a checkpoint, bit by bit as the old one does."""
    targets: dict[str, Tensor] = {}
    load_optimizer_state(resumed.optimizer, saved.described()["optim0"], "optim0", targets.update)
    targets |= {f"model/{name}": item for name, item in resumed.unet.state_dict().items()}
    targets |= {f"ema/0.{name}": item for name, item in resumed.average.state_dict().items()}
    assert targets.keys() == saved.shapes.keys()
    saved.load(targets)
    assert sharded.step(STEPS) == resumed.step(STEPS)
    for one, other in zip(sharded.parts(), resumed.parts(), strict=True):
        assert torch.equal(one, other)


def compare_samples(sharded: Training, alone: Training | None) -> None:
    """Sampling calls the network's parts in another order: conditions once, and steps without gradients."""
    options = {"texts": CAPTIONS[:2], "seed": 3, "use_tqdm": False}
    options |= {"video_frames": 4} if "video" in CHOICES else {}
    if alone is not None:
        alone.step(STEPS)
    for precision, far in (("no", 1e-4), ("bf16", 0.05)):
        made = sharded.model.sample(**options, precision=precision)
        if alone is not None:
            assert float((made - alone.model.sample(**options, precision=precision)).abs().max()) < far


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    first = dist.get_rank() == 0
    alone = begun() if first else None
    sharded = begun(mesh)
    for number in range(STEPS):
        found = sharded.step(number)
        if alone is not None:
            expected = alone.step(number)
            assert torch.allclose(torch.tensor(found), torch.tensor(expected), rtol=1e-5), (found, expected)
    compare(sharded, alone)
    check_memory(sharded)

    fs, folder = fsspec.filesystem("file"), f"{FOLDER}/checkpoint.{STEPS}"
    tensors, rest = sharded.tensors()
    write_sharded(fs, folder, tensors, {"optim0": rest, "steps": torch.tensor([STEPS])})
    if alone is not None:
        torch.save({"alone": alone.tensors()[0], "optimizer": alone.optimizer.state_dict()}, f"{FOLDER}/alone.pt")

    check_nan(sharded)
    if "levels" in CHOICES:
        compare_resumed(sharded, begun(mesh), ShardedCheckpoint(fs, folder))
        compare_samples(sharded, alone)
    check_memory(sharded)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
