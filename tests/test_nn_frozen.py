"""Any part of a network may be frozen; tried in a process of its own, because a crash of torch would end it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from imagen_pytorch.nn.norms import GroupNorm

MATRIX = """
import torch
from imagen_pytorch import Unet, Unet3D

torch.set_num_threads(1)
SMALL = dict(dim=8, dim_mults=(1, 2), layer_attns=False, attn_heads=2, attn_dim_head=8, attn_pool_text=False,
             init_cross_embed=False, text_embed_dim=6)
LINEAR = dict(memory_efficient=True, use_linear_attn=True, use_linear_cross_attn=True, combine_upsample_fmaps=True)
NETWORKS = (Unet, {}), (Unet, LINEAR), (Unet, dict(gradient_checkpointing=True)), (Unet3D, dict(use_linear_attn=True))
for kind, options in NETWORKS:
    net = kind(**SMALL, **options)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    parts = [name for name, part in net.named_children() if list(part.parameters())]
    norms = {name for name, part in net.named_modules() if isinstance(part, torch.nn.GroupNorm)}
    rules = {f"from {part} on": lambda name, at=at: name.split(".")[0] in parts[at:] for at, part in enumerate(parts)}
    rules |= {f"{part} alone": lambda name, part=part: name.split(".")[0] == part for part in parts}
    rules |= {f"{key} of norms": lambda name, key=key: name.rpartition(".")[0] in norms and name.endswith(key)
              for key in ("", "weight", "bias")}
    x = torch.rand(2, 3, *((2, 8, 8) if kind is Unet3D else (8, 8)))
    for name, trained in rules.items():
        print(kind.__name__, options, name, flush=True)
        for key, parameter in net.named_parameters():
            parameter.requires_grad_(trained(key))
            parameter.grad = None
        answer = net(x, torch.zeros(2), text_embeds=torch.ones(2, 3, 6))
        if answer.requires_grad:  # a network that was told no rate does not ask the layer for rates
            answer.square().sum().backward()
        found = {key: part.grad for key, part in net.named_parameters() if part.grad is not None}
        assert all(trained(key) and gradient.isfinite().all() for key, gradient in found.items())
print("all")
"""


@pytest.mark.slow
def test_every_part_can_be_frozen_or_trained_alone():
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", MATRIX],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        cwd=Path(__file__).parents[1],
    )
    assert run.returncode == 0 and run.stdout.endswith("all\n"), (run.returncode, run.stdout[-200:], run.stderr[-2000:])


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("shape", [(2, 8, 5, 4), (2, 8, 6), (1, 8, 1, 1)], ids=str)
def test_a_norm_behind_frozen_layers_has_the_gradients_of_torch(groups, shape):
    plain, ours = nn.GroupNorm(groups, 8), GroupNorm(groups, 8)
    x = torch.randn(shape)
    last = x.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else x
    answers = [plain(x), ours(last)]
    torch.testing.assert_close(answers[1], answers[0])
    assert len(shape) == 3 or answers[1].is_contiguous(memory_format=torch.channels_last)
    for answer in answers:
        (answer * torch.arange(answer.numel()).view(shape)).sum().backward()
    torch.testing.assert_close(ours.weight.grad, plain.weight.grad)
    torch.testing.assert_close(ours.bias.grad, plain.bias.grad)


def test_a_map_with_a_gradient_is_normed_as_it_lies(monkeypatch):
    x = torch.randn(2, 8, 4, 4).contiguous(memory_format=torch.channels_last).requires_grad_()
    seen = []
    monkeypatch.setattr(torch.nn.functional, "group_norm", lambda x, *rest: seen.append(x) or x)
    GroupNorm(4, 8)(x)
    with torch.no_grad():
        GroupNorm(4, 8)(x.detach())
    GroupNorm(4, 8).requires_grad_(False)(x.detach())
    assert [item.data_ptr() for item in seen] == [x.data_ptr()] * 3
