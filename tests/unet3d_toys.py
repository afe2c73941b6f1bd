"""Video networks and their inputs, small enough for a test."""

from __future__ import annotations

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from imagen_pytorch import Unet, Unet3D

TOY = dict(dim=8, dim_mults=(1, 2), attn_heads=2, attn_dim_head=4, text_embed_dim=6)
TOY |= dict(attn_pool_text=False, init_cross_embed=False)  # which cost most of the time of networks so small
PLAIN = dict(cond_on_text=False, attend_at_middle=False)
SIZE, FRAMES = (6, 5), 4
BOTH_WAYS = {"time_causal_attn": False}


@pytest.fixture(autouse=True)
def unchecked(monkeypatch):
    """Without the run-time checks of annotations, which take most of the time of small networks."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def make(kind=Unet3D, **options):
    torch.manual_seed(0)
    return kind(**{**TOY, **options})


def awake(net: nn.Module, share: float = 0.15, seed: int = 1) -> nn.Module:
    """Every weight moved, so that nothing is zero and every part can be seen in the answer."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.data += share * torch.randn(parameter.shape, generator=generator)
    return net.eval()


def inputs(net, batch=2, frames=FRAMES, size=SIZE) -> dict[str, torch.Tensor]:
    """Everything that the network takes, other pictures of sizes of their own."""
    torch.manual_seed(2)
    given = {"x": torch.randn(batch, net.channels, frames, *size), "time": torch.randn(batch)}
    if net.cond_on_text:
        given |= {"text_embeds": torch.randn(batch, 4, net.text_embed_dim)}
    if net.lowres_cond:
        given |= {"lowres_cond_img": torch.randn(batch, 3, frames, 4, 3), "lowres_noise_times": torch.randn(batch)}
    if net.has_cond_image:
        given |= {"cond_images": torch.randn(batch, net.cond_images_channels, 7, 6)}
    if net.self_cond:
        given |= {"self_cond": torch.randn(batch, net.channels, frames, *size)}
    return given


def doubled(given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """In double precision, where rounding hides nothing."""
    return {name: value.double() for name, value in given.items()}


def frame_of(given: dict[str, torch.Tensor], index: int) -> dict[str, torch.Tensor]:
    """What belongs to one frame, as a picture network takes it."""
    return {name: value[:, :, index] if value.ndim == 5 else value for name, value in given.items()}


def taught_pictures(video: Unet3D, pictures: Unet) -> None:
    """Give a video network the weights of a picture network. The first convolution has one more channel, for the mark;
    the layers between frames stay as they were."""
    weights = dict(pictures.state_dict())
    for name in [name for name in weights if name.startswith("init_conv.") and name.endswith("weight")]:
        weights[name] = F.pad(weights[name], (0, 0, 0, 0, 0, 1))
    missing, unexpected = video.load_state_dict(weights, strict=False)
    between = ("temporal", "squeeze", "stretch", "rate", "shift_share")
    assert not unexpected and missing and all(any(part in name for part in between) for name in missing)


def stir_between(video: Unet3D, pictures: Unet) -> None:
    """As if the layers between frames had been trained."""
    of_pictures = pictures.state_dict().keys()
    for name, part in video.named_parameters():
        if name not in of_pictures:
            part.data += 0.3 * torch.randn_like(part)


def close(a: torch.Tensor, b: torch.Tensor, atol: float = 1e-6) -> bool:
    return torch.allclose(a, b, rtol=1e-5, atol=atol)


def far(a: torch.Tensor, b: torch.Tensor) -> bool:
    return float((a - b).detach().abs().max()) > 1e-3


EVERYTHING = {"layer_attns": True, "ff_time_token_shift": True, "use_global_context_attn": True}


def answers_to_change(net, frame, **given):
    """The answers before and after one frame was changed."""
    x = given.pop("x")
    other = x.clone()
    other[:, :, frame] += 1
    with torch.no_grad():
        return net(x=x, **given), net(x=other, **given)


def picture_by_picture(pictures: Unet, given: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack([pictures(**frame_of(given, index)) for index in range(given["x"].shape[2])], dim=2)
