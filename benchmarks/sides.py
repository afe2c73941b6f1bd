"""One side of one case of `compare.py`, in a process of its own: says what it is, then measures whenever it is told.

Standard input: one line per measurement. Standard output: one JSON object per line; first what the side is, then
``{"wall": seconds, "cpu": seconds}`` of one unit of work each time, or ``{"error": sentence}``.
"""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import json
import os
import resource
import sys
import tempfile
import time
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

TOKENS, WIDTH = 77, 768
#: the first example of the alternatives' README, and a network that says nothing but its width
UNETS = {
    "readme": {
        "dim": 32,
        "cond_dim": 512,
        "dim_mults": (1, 2, 4, 8),
        "num_resnet_blocks": 3,
        "layer_attns": (False, True, True, True),
        "layer_cross_attns": (False, True, True, True),
    },
    "default": {"dim": 32},
    "small": {
        "dim": 32,
        "dim_mults": (1, 2, 4),
        "layer_attns": (False, False, True),
        "layer_cross_attns": (False, False, True),
    },
}
#: of about the same widths, blocks and attention for diffusers
_DOWN = {
    "readme": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "default": ("CrossAttnDownBlock2D",) * 4,
}
_LAYERS = {"readme": 3, "default": 1}


def _pretend_torchvision() -> None:
    """imagen-pytorch imports torchvision for its data sets only, and there is no CPU build of it everywhere."""
    try:
        import torchvision  # noqa: F401
    except ImportError:

        class Anything(types.ModuleType):
            def __getattr__(self, name: str) -> object:
                if name.startswith("__"):
                    raise AttributeError(name)
                return Anything(name)

            def __call__(self, *_: object, **__: object) -> object:
                return self

        for name in ("torchvision", "torchvision.transforms", "torchvision.utils", "torchvision.transforms.functional"):
            module = sys.modules[name] = Anything(name)
            module.__spec__ = importlib.machinery.ModuleSpec(name, None)


def _package(side: str) -> types.ModuleType:
    """The package of a side that has the names `Unet`, `Imagen` ...; the other one asks a hub for a width at import."""
    if side == "imagen-pytorch":
        from transformers import T5Config

        _pretend_torchvision()
        T5Config.from_pretrained = classmethod(lambda cls, name, **options: cls(d_model=WIDTH))
    import imagen_pytorch

    return imagen_pytorch


def _inputs(batch: int, size: int, frames: int = 0) -> dict:
    import torch

    torch.manual_seed(0)
    shape = (batch, 3, *([frames] if frames else []), size, size)
    return {
        "images": torch.rand(shape),
        "text_embeds": torch.randn(batch, TOKENS, WIDTH),
        "text_masks": torch.ones(batch, TOKENS, dtype=torch.bool),
    }


def _model(side: str, unet: str, sizes: tuple, steps: int, kind: str = "Imagen", video: bool = False) -> nn.Module:
    import torch

    package = _package(side)
    torch.manual_seed(0)
    given = {"text_embed_dim": WIDTH, "cond_on_text": True}
    make = package.Unet3D if video else package.Unet
    unets = [make(**UNETS[unet], **given, **({"lowres_cond": True} if index else {})) for index in range(len(sizes))]
    named = {"num_sample_steps": steps} if kind == "ElucidatedImagen" else {"timesteps": steps}
    return getattr(package, kind)(unets, image_sizes=sizes, text_embed_dim=WIDTH, **named)


def _stepper(model: nn.Module, loss: Callable) -> Callable:
    import torch

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _diffusers(unet: str, size: int) -> tuple[nn.Module, Any]:
    import torch
    from diffusers import DDPMScheduler, UNet2DConditionModel

    torch.manual_seed(0)
    down = _DOWN[unet]
    net = UNet2DConditionModel(
        sample_size=size,
        in_channels=3,
        out_channels=3,
        block_out_channels=(32, 64, 128, 256),
        layers_per_block=_LAYERS[unet],
        down_block_types=down,
        up_block_types=tuple(name.replace("Down", "Up") for name in reversed(down)),
        cross_attention_dim=WIDTH,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    return net, DDPMScheduler(num_train_timesteps=1000)


# -- cases: each gives a function that does some work, and how many units that is -------------------------------------


def train(side: str, unet: str = "readme", size: int = 64, batch: int = 2) -> tuple[Callable, int]:
    """A training step: loss, gradient, Adam; a unit is a picture."""
    import torch

    given = _inputs(batch, size)
    if side == "diffusers":
        net, scheduler = _diffusers(unet, size)

        def loss() -> Tensor:
            noise, times = torch.randn_like(given["images"]), torch.randint(0, 1000, (batch,))
            noisy = scheduler.add_noise(given["images"] * 2 - 1, noise, times)
            return torch.nn.functional.mse_loss(net(noisy, times, given["text_embeds"]).sample, noise)

        return _stepper(net, loss), batch
    model = _model(side, unet, (size,), 100)
    return _stepper(model, lambda: model(**given, unet_number=1)), batch


def sample(
    side: str,
    unet: str = "readme",
    size: int = 64,
    batch: int = 1,
    steps: int = 4,
    kind: str = "Imagen",
    compiled: bool = False,
) -> tuple[Callable, int]:
    """Guided sampling; a unit is a step of one picture."""
    import torch

    given = _inputs(batch, size)
    del given["images"]
    if side == "diffusers":
        net, scheduler = _diffusers(unet, size)
        both = torch.cat([given["text_embeds"], torch.zeros_like(given["text_embeds"])])

        @torch.no_grad()
        def draw() -> None:
            scheduler.set_timesteps(steps)
            x = torch.randn(batch, 3, size, size)
            for time_ in scheduler.timesteps:
                cond, null = net(torch.cat([x, x]), time_, both).sample.chunk(2)
                x = scheduler.step(null + 3 * (cond - null), time_, x).prev_sample

        return draw, steps * batch
    model = _model(side, unet, (size,), steps, kind)
    named = {"compile": True} if compiled and side == "ours" else {}
    return lambda: model.sample(**given, cond_scale=3.0, use_tqdm=False, **named), steps * batch


def cascade(side: str) -> tuple[Callable, int]:
    """A picture through two stages."""
    given = _inputs(1, 64)
    del given["images"]
    model = _model(side, "small", (32, 64), 4)
    return lambda: model.sample(**given, cond_scale=3.0, use_tqdm=False), 1


def video(side: str, frames: int = 8) -> tuple[Callable, int]:
    """A training step of a clip."""
    given = _inputs(1, 32, frames)
    model = _model(side, "small", (32,), 100, video=True)
    return _stepper(model, lambda: model(**given, unet_number=1)), 1


def checkpoint(side: str) -> tuple[Callable, int]:
    """Saving and loading a trainer with averages and moments."""
    model = _model(side, "readme", (32,), 100)
    trainer = _package(side).ImagenTrainer(model, verbose=False)
    trainer(**_inputs(2, 32), unet_number=1)
    trainer.update(unet_number=1)
    path = os.path.join(tempfile.mkdtemp(), "a.pt")

    def both() -> None:
        trainer.save(path)
        trainer.load(path)

    return both, 1


CASES: dict[str, tuple[Callable, dict, tuple[str, ...]]] = {
    "train readme": (train, {}, ("ours", "imagen-pytorch", "diffusers")),
    "train default": (train, {"unet": "default", "batch": 1}, ("ours", "imagen-pytorch", "diffusers")),
    "guided step readme": (sample, {}, ("ours", "imagen-pytorch", "diffusers")),
    "guided step readme batch 4": (sample, {"batch": 4, "steps": 2}, ("ours", "imagen-pytorch", "diffusers")),
    "guided step readme 32x32": (sample, {"size": 32}, ("ours", "imagen-pytorch", "diffusers")),
    "guided step default": (sample, {"unet": "default", "steps": 2}, ("ours", "imagen-pytorch", "diffusers")),
    "guided step elucidated": (sample, {"kind": "ElucidatedImagen", "steps": 3}, ("ours", "imagen-pytorch")),
    "cascade 32 to 64": (cascade, {}, ("ours", "imagen-pytorch")),
    "train video 8 frames": (video, {}, ("ours", "imagen-pytorch")),
    "train video 16 frames": (video, {"frames": 16}, ("ours", "imagen-pytorch")),
    "checkpoint": (checkpoint, {}, ("ours", "imagen-pytorch")),
    "guided step readme compiled": (sample, {"compiled": True}, ("ours", "imagen-pytorch")),
}


def main() -> None:
    """Prepare, warm up, and measure once for every line."""
    side, name = sys.argv[1:3]
    out, sys.stdout = sys.stdout, sys.stderr  # what packages print is no answer

    def answer(**values: object) -> None:
        print(json.dumps(values), file=out, flush=True)

    try:
        import torch

        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        make, options, _ = CASES[name]
        work, units = make(side, **options)
        work()
        package = "imagen-pytorch" if side != "diffusers" else side
        version = "" if side == "ours" else importlib.metadata.version(package)
        answer(torch=torch.__version__, version=version)
        for _ in sys.stdin:
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            taken = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            answer(**{clock: seconds / units for clock, seconds in taken.items()}, peak_mb=round(peak))
    except Exception as error:
        answer(error=f"{type(error).__name__}: {error}".splitlines()[0][:200])


if __name__ == "__main__":
    main()
