"""Group norm that can be trained on a CPU after frozen layers."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


class GroupNorm(nn.GroupNorm):
    """`torch.nn.GroupNorm` (Wu & He 2018, arXiv 1803.08494).

    On a CPU, the backward pass of torch's kernel ends the process if the map lies channels last and needs no gradient
    while the weights do, as after frozen layers. This layer brings such a map into the contiguous order.
    """

    def forward(self, input: Float[Tensor, "b c *space"]) -> Float[Tensor, "b c *space"]:
        """Return the normed map, in the layout of the given one."""
        frozen = torch.is_grad_enabled() and not input.requires_grad and self._trained
        if not frozen or input.device.type != "cpu" or input.is_contiguous():
            return super().forward(input)
        normed = super().forward(input.contiguous())
        return normed.contiguous(memory_format=torch.channels_last) if input.ndim == 4 else normed

    @property
    def _trained(self) -> bool:
        return any(part is not None and part.requires_grad for part in (self.weight, self.bias))


def group_norm(dim: int, groups: int) -> GroupNorm:
    """Return a group norm with the largest number of groups, at most ``groups``, that divides the channels."""
    return GroupNorm(math.gcd(dim, groups), dim)
