"""Post-hoc averages of weights: averages of any length, made after the training from a few that were tracked.

After Karras et al. 2023, arXiv 2312.02696, section 3 and appendix C. The average with exponent g after n updates weighs
the weights after update i by ``(i / n)**(g + 1) - ((i - 1) / n)**(g + 1)``: its profile over time is the power function
``(g + 1) t**g / n**(g + 1)``. Its relative width is the standard deviation of that profile divided by n.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

#: relative widths that are tracked: from these two every width between them is reconstructed within half a percent
WIDTHS = (0.05, 0.28)
#: relative width of the plain mean of all weights, which no average of this family exceeds
WIDEST = 12**-0.5


def exponent_of(width: float) -> float:
    """Return the exponent of a relative width, the root of g^3 + 7 g^2 + (16 - w^-2) g + 12 - w^-2; a ValueError if the
    width is not between 0 and 12**-0.5."""
    if not 0 < width < WIDEST:
        raise ValueError(f"the relative width of an average must lie between 0 and {WIDEST:.4f}, got {width!r}")
    roots = np.roots([1, 7, 16 - width**-2, 12 - width**-2])
    return float(roots[np.isreal(roots)].real.max())


class Profile(NamedTuple):
    """The weights of an average over time.

    Attributes:
        exponent: of the power function.
        end: number of updates after which the average was taken.
    """

    exponent: float
    end: float


def products(some: Sequence[Profile], others: Sequence[Profile]) -> np.ndarray:
    """Compute the inner products of profiles, the integrals of their products over time, in closed form: a matrix with
    a row for each of ``some`` and a column for each of ``others``."""
    a, end = np.array(some, dtype=float).T[..., None]
    b, other_end = np.array(others, dtype=float).T
    first = np.minimum(end, other_end)
    powers = (first / end) ** a * (first / other_end) ** b
    return (a + 1) * (b + 1) / (a + b + 1) * powers * first / (end * other_end)


class Combination(NamedTuple):
    """The linear combination of averages that comes nearest to another one.

    Attributes:
        weights: one for each average.
        error: distance between its profile and the wanted one, in units of the latter's norm.
    """

    weights: list[float]
    error: float


def combine(known: Sequence[Profile], wanted: Profile) -> Combination:
    """Compute by least squares the combination of known averages whose profile is nearest to the wanted one."""
    matrix, target, norm = products(known, known), products(known, [wanted])[:, 0], products([wanted], [wanted]).item()
    scale = matrix.diagonal() ** -0.5  # profiles of unit length: the matrix is as well conditioned as it can be
    solution = np.linalg.lstsq(matrix * scale[:, None] * scale, target * scale, rcond=1e-13)[0]
    weights = solution * scale
    squared = weights @ matrix @ weights - 2 * weights @ target + norm
    return Combination(weights.tolist(), math.sqrt(max(squared, 0.0) / norm))


class PowerAverages:
    """Averages of the weights of one network with power-function profiles, updated after every update of the weights.

    They are kept on the device of the weights and begin with the first update that is tracked.

    Args:
        unet: the network that is trained; it is watched, not contained.
        widths: relative widths of the averages.

    Attributes:
        count: number of updates so far.
        tensors: one dict of tensors by name for each width; empty before the first update.
        checked: number of updates up to which earlier snapshots of this run may exist.

    Raises:
        ValueError: a width that no average has.
    """

    def __init__(self, unet: nn.Module, widths: Sequence[float] = WIDTHS) -> None:
        self.unet, self.widths = unet, tuple(widths)
        self.exponents = [exponent_of(width) for width in self.widths]
        self.count = self.checked = 0
        self.tensors: list[dict[str, Tensor]] = []

    @torch.no_grad()
    def update(self) -> None:
        """Take in the present weights."""
        present = {name: item.detach() for name, item in self.unet.state_dict().items()}
        self.count += 1
        if self.count == 1:
            self.tensors = [{name: item.clone() for name, item in present.items()} for _ in self.widths]
            return
        moved = [name for name, item in present.items() if item.is_floating_point()]
        for exponent, average in zip(self.exponents, self.tensors, strict=True):
            share = -math.expm1((exponent + 1) * math.log1p(-1 / self.count))
            torch._foreach_lerp_([average[name] for name in moved], [present[name] for name in moved], share)
            for name in present.keys() - set(moved):
                average[name].copy_(present[name])

    def state_dict(self) -> dict[str, Any]:
        """Return an entry of a checkpoint."""
        return {"count": self.count, "widths": list(self.widths), "averages": [dict(each) for each in self.tensors]}

    def load_state_dict(self, saved: Mapping[str, Any] | None) -> bool:
        """Go on from an entry of a checkpoint; without one, or with other widths, begin anew. Return whether there was
        something to go on from."""
        fits = saved is not None and list(saved["widths"]) == list(self.widths)
        self.count = self.checked = saved["count"] if saved is not None and fits else 0
        self.tensors = []
        if saved is not None and fits:
            present = self.unet.state_dict()
            self.tensors = [
                {name: item.to(present[name], copy=True) for name, item in each.items()} for each in saved["averages"]
            ]
        return fits
