"""Muon: momentum whose matrices are made orthogonal before every update.

After Jordan et al. 2024 (kellerjordan.github.io/posts/muon) with the scale and the weight decay of Liu et al. 2025
(arXiv 2502.16982), so that learning rates of AdamW can be used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

#: coefficients of the quintic iteration, chosen by Jordan et al. for a steep slope at 0
_A, _B, _C = 3.4445, -4.7750, 2.0315
#: from this ratio of the sides of a matrix on, the steps are taken on the product with its transpose (kernels, mostly)
_WIDE = 1.5
#: norms below this count as this
_SMALLEST = 1e-7
#: updates of a matrix have the root mean square of a typical update of AdamW
_SCALE = 0.2
#: layers at the ends of a U-Net, whose kernels map from and to images
_ENDS = ("init_conv.", "final_conv.")


def _iteration_dtype(device: torch.device) -> torch.dtype:
    """Return the precision of the iteration: bfloat16 where it is fast."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def orthogonalized(update: Tensor, steps: int = 5) -> Tensor:
    """Compute a matrix near U V' for the singular value decomposition U S V' of a matrix, by Newton-Schulz steps.

    Args:
        update: ``(out, in)``, or a kernel ``(out, in, height, width)``, taken as ``(out, in * height * width)``.
        steps: number of steps; after five the singular values lie between about 0.7 and 1.2.
    """
    matrix = update.flatten(1).to(_iteration_dtype(update.device))
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=_SMALLEST)
    if x.dtype == torch.float32 and x.shape[1] > _WIDE * x.shape[0]:
        x = _factor(x @ x.T, steps) @ x
    else:
        for _ in range(steps):
            gram = x @ x.T
            x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return (x.T if tall else x).reshape(update.shape).to(update.dtype)


def muon_groups(unet: nn.Module, decay: float = 0.0, decay_vectors: bool = False) -> list[dict[str, Any]]:
    """Sort the parameters of a network into three groups for `Muon`, with weight decay.

    The first has the matrices and kernels of the inner layers. AdamW trains the rest: in the second group the first and
    the last convolution, embeddings, depthwise kernels and tokens, in the third gains and biases, which decay with
    ``decay_vectors`` only.
    """
    embeddings = {id(part.weight) for part in unet.modules() if isinstance(part, nn.Embedding)}
    groups: tuple[list[Tensor], ...] = ([], [], [])
    for name, item in unet.named_parameters():
        inner = item.ndim in (2, 4) and name.endswith("weight") and min(item.shape[:2]) > 1
        if inner and not name.startswith(_ENDS) and id(item) not in embeddings:
            groups[0].append(item)
        else:
            groups[1 if item.ndim >= 2 else 2].append(item)
    decays = (decay, decay, decay if decay_vectors else 0.0)
    return [
        {"params": items, "weight_decay": each, "muon": not index}
        for index, (items, each) in enumerate(zip(groups, decays, strict=True))
    ]


def _factor(gram: Tensor, steps: int) -> Tensor:
    """Compute the matrix that all steps together multiply a matrix X with, from X X'.

    Every step is a polynomial of X X', and polynomials of one matrix commute. So the wide matrix takes part in only the
    first and the last product. In bfloat16 the small singular values would drown in the squares.
    """
    total = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    for _ in range(steps):
        polynomial = torch.addmm(gram, gram, gram, beta=_B, alpha=_C)
        polynomial.diagonal().add_(_A)
        total = polynomial @ total
        gram = polynomial @ gram @ polynomial
    return total


class Muon(Optimizer):
    """Muon for groups with ``muon=True``, which is the default of a group, and AdamW for the others.

    Args:
        params: parameters, or groups of them; those of Muon have two or more axes.
        lr: learning rate.
        betas, eps: of AdamW.
        weight_decay: decoupled, of both.
        momentum: of Muon, in the form of Nesterov.

    Raises:
        ValueError: a parameter with fewer than two axes in a group for Muon.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(params, {**defaults, "muon": True})
        for group in self.param_groups:
            if group["muon"] and (flat := [tuple(item.shape) for item in group["params"] if item.ndim < 2]):
                raise ValueError(f"Muon is for matrices and kernels, got shape {flat[0]}: give its group muon=False")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step from the gradients; returns what ``closure`` gives, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            update = self._muon if group["muon"] else self._adamw
            for item in group["params"]:
                if item.grad is not None:
                    item.mul_(1 - group["lr"] * group["weight_decay"])
                    update(item, self.state[item], group)
        return loss

    def _muon(self, item: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if not state:
            state["momentum_buffer"] = torch.zeros_like(item)
        momentum = state["momentum_buffer"].lerp_(item.grad, 1 - group["momentum"])
        update = orthogonalized(item.grad.lerp(momentum, group["momentum"]))
        largest = max(item.shape[0], item[0].numel())
        item.add_(update, alpha=-group["lr"] * _SCALE * largest**0.5)

    def _adamw(self, item: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if not state:
            state |= {"step": torch.zeros(()), "exp_avg": torch.zeros_like(item), "exp_avg_sq": torch.zeros_like(item)}
        state["step"] += 1
        first, second = group["betas"]
        mean = state["exp_avg"].lerp_(item.grad, 1 - first)
        square = state["exp_avg_sq"].mul_(second).addcmul_(item.grad, item.grad, value=1 - second)
        taken = float(state["step"])
        size = (square / (1 - second**taken)).sqrt_().add_(group["eps"])
        item.addcdiv_(mean, size, value=-group["lr"] / (1 - first**taken))
