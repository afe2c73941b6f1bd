"""The networks and models that are compared, of every package, and random inputs for them."""

from __future__ import annotations

import importlib.machinery
import os
import platform
import re
import sys
import types
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

TOKENS, WIDTH = 77, 768
_LARGE = {
    "dim_mults": (1, 2, 3, 4),
    "num_resnet_blocks": 3,
    "layer_attns": (False, True, True, True),
    "layer_cross_attns": (False, True, True, True),
}
#: the first example of the alternatives' README, a network that says nothing but its width, a smaller one, and the base
#: network of the paper at a quarter and half of its width
UNETS: dict[str, dict[str, Any]] = {
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
    "base 128": {"dim": 128, **_LARGE},
    "base 256": {"dim": 256, **_LARGE},
}
#: of diffusers: widths that give about as many parameters, with blocks and attention at the same places
_DIFFUSERS: dict[str, dict[str, Any]] = {
    "readme": {"widths": (32, 64, 128, 224), "blocks": 3, "attention": (False, True, True, True)},
    "default": {"widths": (32, 64, 128, 192), "blocks": 1, "attention": (True, True, True, True)},
    "small": {"widths": (32, 64, 128), "blocks": 1, "attention": (False, False, True)},
    "base 256": {"widths": (192, 384, 576, 768), "blocks": 3, "attention": (False, True, True, True)},
}


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


def machine(device: str = "cpu") -> str:
    """What computes, in words."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    known = Path("/proc/cpuinfo")
    name = re.search(r"model name\s*: (.*)", known.read_text()) if known.exists() else None
    what = name[1] if name else platform.machine()
    return f"{what} (CPU), {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"


def package(side: str) -> types.ModuleType:
    """The package of a side that has the names `Unet`, `Imagen` ...; the other one asks a hub for a width at import."""
    if side == "imagen-pytorch":
        from transformers import T5Config

        _pretend_torchvision()
        asked = T5Config.from_pretrained
        T5Config.from_pretrained = classmethod(lambda cls, name, **options: cls(d_model=WIDTH))
        import imagen_pytorch

        T5Config.from_pretrained = asked
    import imagen_pytorch

    return imagen_pytorch


def awake(model: nn.Module) -> nn.Module:
    """With numbers in place of the zeros that last layers begin with, so that pictures are not constant."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model


def inputs(batch: int, size: int, device: str, frames: int = 0, tokens: int = TOKENS) -> dict[str, Tensor]:
    """Random pictures or clips and captions."""
    torch.manual_seed(0)
    shape = (batch, 3, *([frames] if frames else []), size, size)
    given = {
        "images": torch.rand(shape),
        "text_embeds": torch.randn(batch, tokens, WIDTH),
        "text_masks": torch.ones(batch, tokens, dtype=torch.bool),
    }
    return {name: value.to(device) for name, value in given.items()}


def captions(batch: int, device: str, tokens: int = TOKENS) -> dict[str, Tensor]:
    """Random captions."""
    given = inputs(batch, 1, device, tokens=tokens)
    del given["images"]
    return given


def model(
    side: str, unet: str, sizes: tuple[int, ...], steps: int, device: str, kind: str = "Imagen", video: bool = False
) -> nn.Module:
    """An `Imagen` or `ElucidatedImagen` of this package or of imagen-pytorch."""
    made = package(side)
    torch.manual_seed(0)
    make = made.Unet3D if video else made.Unet
    unets = [
        make(**UNETS[unet], text_embed_dim=WIDTH, cond_on_text=True, **({"lowres_cond": True} if index else {}))
        for index in range(len(sizes))
    ]
    named = {"num_sample_steps": steps} if kind == "ElucidatedImagen" else {"timesteps": steps}
    return awake(getattr(made, kind)(unets, image_sizes=sizes, text_embed_dim=WIDTH, **named)).to(device)


def of_diffusers(unet: str, size: int, device: str) -> tuple[nn.Module, Any]:
    """A network of diffusers and its scheduler."""
    from diffusers import DDPMScheduler, UNet2DConditionModel

    torch.manual_seed(0)
    chosen = _DIFFUSERS[unet]
    down = tuple("CrossAttnDownBlock2D" if there else "DownBlock2D" for there in chosen["attention"])
    network = UNet2DConditionModel(
        sample_size=size,
        in_channels=3,
        out_channels=3,
        block_out_channels=chosen["widths"],
        layers_per_block=chosen["blocks"],
        down_block_types=down,
        up_block_types=tuple(name.replace("Down", "Up") for name in reversed(down)),
        cross_attention_dim=WIDTH,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    return network.to(device), DDPMScheduler(num_train_timesteps=1000)
