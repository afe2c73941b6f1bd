"""Impossible numbers of networks end in a sentence that names them, before any tensor is made."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import torch
from torch.nn.modules import module as hooks

from imagen_pytorch import BaseUnet64, Unet, Unet3D
from imagen_pytorch.construction import plain
from imagen_pytorch.nn.arguments import LISTS, UNUSED, WHOLE

SMALL = {"dim": 8, "dim_mults": (1, 2), "attn_heads": 2, "attn_dim_head": 8, "text_embed_dim": 6}
IMPOSSIBLE = [-1, 10**30, 1.5, math.nan, math.inf, -math.inf, "8", [], ["x"], {}, object()]
SHARES = {"ff_mult": [0, -1, math.nan, math.inf, 1e9, "2", 1e-6, None],
          "dropout": [-0.1, 1, 1.5, math.nan, math.inf, "0.1", None],
          "dim_mults": [0, 4, (0,), (1, -1), (), (math.nan,), (math.inf,), ("1",), (1e-3,), (1, 10**30), None],
          }  # fmt: skip


def annotations(kind):
    owners = (Unet, Unet3D) if kind is Unet3D else (Unet,)
    found = {}
    for owner in owners:
        found |= {name: str(item.annotation) for name, item in inspect.signature(owner.__init__).parameters.items()}
    return {name: kind for name, kind in found.items() if name not in ("self", "kwargs", *UNUSED)}


@pytest.fixture(autouse=True)
def unchecked(monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)


def refused(kind, **options):
    """The sentence; no tensor is made on the way to it."""
    made = []
    handle = hooks.register_module_parameter_registration_hook(lambda *what: made.append(what))
    try:
        with pytest.raises((ValueError, TypeError)) as caught:
            kind(**{**SMALL, **options})
    finally:
        handle.remove()
    name = next(iter(options))
    assert not made, f"{name}: tensors were made first"
    assert str(caught.value).startswith(name) and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", [Unet, Unet3D])
def test_every_number_is_in_a_table(kind):
    numbers = {name for name, text in annotations(kind).items() if text.startswith(("int", "float", "Sequence"))}
    assert numbers <= {*WHOLE, *SHARES}


@pytest.mark.parametrize("kind", [Unet, Unet3D])
@pytest.mark.parametrize("name", WHOLE)
def test_impossible_whole_numbers_are_refused(name, kind):
    if name not in annotations(kind):
        return
    for value in IMPOSSIBLE:
        refused(kind, **{name: (value,) if name in LISTS and not isinstance(value, list) else value})
    if "None" not in annotations(kind)[name]:
        assert "must be given, got None" in refused(kind, **{name: None})
    low = WHOLE[name][0]
    assert f"at least {low}, got {low - 1}" in refused(kind, **{name: (low - 1,) if name in LISTS else low - 1})


@pytest.mark.parametrize("kind", [Unet, Unet3D])
@pytest.mark.parametrize("name", SHARES)
def test_impossible_shares_and_factors_are_refused(name, kind):
    for value in SHARES[name]:
        refused(kind, **{name: value})


@pytest.mark.parametrize("kind", [Unet, Unet3D])
def test_switches_are_true_or_false(kind):
    switches = [name for name, text in annotations(kind).items() if text.startswith("bool")]
    assert len(switches) > 20
    for name in switches:
        for value in ("no", 2, None, 0.5, math.nan, {}):
            assert "must be true or false" in refused(kind, **{name: value})


def test_presets_refuse_as_well():
    refused(BaseUnet64, num_time_tokens=0)


def test_the_smallest_numbers_work():
    smallest = {name: low for name, (low, _) in WHOLE.items()} | {"cond_images_channels": 1}
    options = {**smallest, "dim": 4, "dim_mults": (1,), "init_cross_embed_kernel_sizes": (1,),
               "cross_embed_downsample_kernel_sizes": (2,), "ff_mult": 0.25}  # fmt: skip
    net = Unet3D(**options).eval()
    answer = net(
        torch.rand(1, 1, 2, 4, 4), torch.zeros(1), text_embeds=torch.rand(1, 3, 1), cond_images=torch.rand(1, 1, 4, 4)
    )
    assert answer.shape == (1, 1, 2, 4, 4)


def test_numbers_of_numpy_and_torch_are_numbers():
    net = Unet(
        **{**SMALL, "dim": np.int64(8), "dim_mults": (np.float32(1), torch.tensor(2)), "layer_attns": np.bool_(True)}
    )
    assert net._locals["dim"] == 8 and net.ups[0].dim_out == 8
    assert plain(net._locals)["dim_mults"] == [1.0, 2]
