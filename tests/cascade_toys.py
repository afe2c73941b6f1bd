"""Toy cascades and stub networks that the tests of the cascade share."""

from __future__ import annotations

import dataclasses
from contextlib import contextmanager
from types import SimpleNamespace

import torch
from jaxtyping import config

from imagen_pytorch.imagen import ElucidatedImagen, Imagen
from imagen_pytorch.nn.unet import Unet
from imagen_pytorch.nn.unet3d import Unet3D

DIM = 12
KINDS = [Imagen, ElucidatedImagen]
SMALL = {
    "dim": 8,
    "dim_mults": (1, 2),
    "num_resnet_blocks": 1,
    "layer_attns": False,
    "layer_cross_attns": (False, True),
    "attend_at_middle": False,
    "attn_heads": 2,
    "attn_dim_head": 8,
    "attn_pool_text": False,
    "init_cross_embed": False,
}


def unet(**options):
    """A tiny `Unet`."""
    return Unet(**{**SMALL, **options})


def video_unet(**options):
    """A tiny `Unet3D`."""
    return Unet3D(**{**SMALL, **options})


def stir(model, seed=0):
    """Move every weight a little: the last layers of a fresh network are zero and would hide what lies before them."""
    generator = torch.Generator().manual_seed(seed)
    for part in model.parameters():
        part.data += 0.03 * torch.randn(part.shape, generator=generator, dtype=part.dtype)
    return model


def cascade(kind=Imagen, stages=1, unet_options=None, network=unet, **options):
    """A cascade of tiny networks, 8x8 pixels and twice as many per further stage, in three sampling steps."""
    torch.manual_seed(0)
    options = {"image_sizes": (8, 16, 32)[:stages], "text_embed_dim": DIM, **options}
    options.setdefault("timesteps" if kind is Imagen else "num_sample_steps", 3)
    fits = {"cond_on_text": options.get("condition_on_text", True), "channels": options.get("channels", 3)}
    fits |= {"text_embed_dim": options["text_embed_dim"] or 768, **(unet_options or {})}  # saves a refitting
    networks = [network(lowres_cond=index > 0, **fits) for index in range(len(options["image_sizes"]))]
    return stir(kind(networks, **options))


def video_cascade(kind=Imagen, stages=1, unet_options=None, **options):
    """A cascade of tiny video networks that see both ways, of 4x4 pixels, then 8x8."""
    options = {"image_sizes": (4, 8, 8, 8)[:stages], **options}
    return cascade(kind, stages, {"time_causal_attn": False, **(unet_options or {})}, video_unet, **options)


def text(batch=2, tokens=3, seed=1):
    """Embeddings of captions."""
    return torch.randn(batch, tokens, DIM, generator=torch.Generator().manual_seed(seed))


def pictures(batch=2, size=8, channels=3, seed=2):
    """Pictures in [0, 1]; the size is a side or (height, width)."""
    height, width = (size, size) if isinstance(size, int) else size
    return torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(seed))


def clips(batch=2, frames=4, size=8, channels=3, seed=2):
    """Clips in [0, 1]; the size is a side or (height, width)."""
    height, width = (size, size) if isinstance(size, int) else size
    return torch.rand(batch, channels, frames, height, width, generator=torch.Generator().manual_seed(seed))


def sample(model, **options):
    """`model.sample`, quiet and seeded."""
    return model.sample(**{"use_tqdm": False, "seed": 0, **options})


@contextmanager
def unchecked():
    """Long loops without the checks of annotations, which take most of the time of tiny networks."""
    before = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        config.update("jaxtyping_disable", before)


def changed(batch, **values):
    """A training batch with some of its draws replaced."""
    return dataclasses.replace(batch, **values)


class Given(SimpleNamespace):
    """The conditioning of a stub network: what it was told, by name."""

    def rows(self, rows):
        """Some items of the batch."""
        named = {name: value[rows] if isinstance(value, torch.Tensor) else value for name, value in vars(self).items()}
        return Given(**named)


class Net(torch.nn.Module):
    """What a cascade wants of a network, around any function of (input, noise condition); keeps what it was given.

    As ``cascade.unets[0]`` it takes part in sampling; handed to the loss it stands for the network or a wrapper of it.
    """

    def __init__(self, answer=None, **facts):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.answer = answer or (lambda x, time: torch.zeros_like(x))
        self.calls, self.conditions = [], []
        self.is_null = self.cond_on_text = self.lowres_cond = self.self_cond = self.has_cond_image = False
        self.__dict__.update(facts)

    def condition(self, **named):
        """Once per call and stage."""
        self.conditions.append(Given(**named))
        return self.conditions[-1]

    def forward(self, x, time, conditioning=None, *, self_cond=None, **named):
        """At every step."""
        self.calls.append(Given(x=x, time=time, conditioning=conditioning, self_cond=self_cond, **named))
        return self.answer(x, time)


def standing_in(model, number=1, answer=None):
    """A `Net` in place of a network of the model, taking what that one took."""
    names = ("cond_on_text", "lowres_cond", "has_cond_image", "self_cond", "is_video", "is_causal")
    network = model.unets[number - 1]
    model.unets[number - 1] = Net(answer, **{name: getattr(network, name) for name in names if hasattr(network, name)})
    return model.unets[number - 1]
