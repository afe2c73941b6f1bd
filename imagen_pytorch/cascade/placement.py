"""Where networks live and in which mode they are, changed for a while and always restored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def device_of(module: nn.Module) -> torch.device:
    """The device of a module's first parameter; the CPU if it has none."""
    parameter = next(module.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def dtype_of(module: nn.Module) -> torch.dtype:
    """The precision of a module's first parameter; single if it has none."""
    parameter = next(module.parameters(), None)
    return torch.float32 if parameter is None else parameter.dtype


@contextmanager
def on_device(module: nn.Module, device: torch.device) -> Iterator[nn.Module]:
    """Have ``module`` on ``device`` inside the block and back where it was after it, whatever happens."""
    home = device_of(module)
    moved = home != device
    if moved:
        module.to(device)
    try:
        yield module
    finally:
        if moved:
            module.to(home)


@contextmanager
def alone_on_device(networks: nn.ModuleList, keep: int, device: torch.device) -> Iterator[None]:
    """Keep only network ``keep`` (0-based) on ``device`` inside the block, the others on the CPU."""
    homes = [device_of(network) for network in networks]
    try:
        for index, network in enumerate(networks):
            network.to(device if index == keep else "cpu")
        yield
    finally:
        for network, home in zip(networks, homes, strict=True):
            network.to(home)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Every submodule in evaluation mode inside the block, each back in its own mode after it."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
