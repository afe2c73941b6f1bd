"""The numbers and switches that a trainer is given, checked before anything is made of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple


class Range(NamedTuple):
    """Finite numbers from ``least`` on, up to ``most``.

    Attributes:
        least, most: both fit unless ``open``.
        open: whether the ends do not fit.
        whole: whether only whole numbers fit.
        optional: whether None fits.
    """

    least: float = -math.inf
    most: float = math.inf
    open: bool = False
    whole: bool = False
    optional: bool = False

    def fits(self, value: Any) -> bool:
        """Return whether a number lies in the range; NaN does not."""
        if self.open:
            return self.least < value < self.most
        return self.least <= value <= self.most and abs(value) != math.inf

    @property
    def limits(self) -> str:
        """The permitted range, in words: "lie in [0, 1]", "be at least 1 or None"."""
        if not math.isinf(self.most):
            return f"lie in [{self.least:g}, {self.most:g}{']' if self.most != _BELOW_ONE else ')'}"
        first = f"be above {self.least:g}" if self.open else f"be at least {self.least:g}"
        return f"{first}{'' if self.whole else ' and finite'}{' or None' if self.optional else ''}"


#: the largest number below 1
_BELOW_ONE = math.nextafter(1, 0)

#: what the numbers of a trainer can be; those of each U-Net may be lists
NUMBERS = {
    "lr": Range(0),
    "eps": Range(0),
    "beta1": Range(0, _BELOW_ONE),
    "beta2": Range(0, _BELOW_ONE),
    "weight_decay": Range(0),
    "max_grad_norm": Range(0, open=True, optional=True),
    "warmup_steps": Range(1, whole=True, optional=True),
    "cosine_decay_max_steps": Range(1, whole=True, optional=True),
    "cooldown_steps": Range(1, whole=True, optional=True),
    "only_train_unet_number": Range(1, whole=True, optional=True),
    "split_valid_fraction": Range(0, 1),
    "split_random_seed": Range(whole=True),
    "checkpoint_every": Range(1, whole=True, optional=True),
    "max_checkpoints_keep": Range(whole=True),
    "max_skipped_steps": Range(0, whole=True),
    "seed": Range(whole=True, optional=True),
    "ema_beta": Range(0, 1),
    "ema_update_after_step": Range(0, whole=True),
    "ema_update_every": Range(1, whole=True),
    "ema_inv_gamma": Range(0, open=True),
    "ema_power": Range(0),
    "ema_min_value": Range(0, 1),
    "ema_update_model_with_ema_every": Range(1, whole=True, optional=True),
    "ema_update_model_with_ema_beta": Range(0, 1),
    "accelerate_gradient_accumulation_steps": Range(1, whole=True),
}
SWITCHES = ("use_ema", "group_wd_params", "fp16", "split_batches", "verbose", "split_valid_from_train",
            "save_in_background", "use_lion", "amsgrad", "maximize", "decoupled_weight_decay")  # fmt: skip
#: arguments that each U-Net has: one value, or a list of one for each
PER_UNET = ("lr", "eps", "warmup_steps", "cosine_decay_max_steps", "cooldown_steps")


def check_number(value: Any, name: str, fits: Range) -> None:
    """Refuse what is not a number of a range. TypeError: something else than a number, truth values included, or a
    fraction where a whole number is wanted; ValueError: a number outside the range, NaN and infinities included."""
    if value is None and fits.optional:
        return
    if isinstance(value, bool) or not isinstance(value, Integral if fits.whole else Real):
        kind = f"be a {'whole' if fits.whole else 'finite'} number{' or None' if fits.optional else ''}"
        raise TypeError(f"{name} must {kind}, got {value!r}")
    if not fits.fits(value):
        raise ValueError(f"{name} must {fits.limits}, got {value!r}")


def check_arguments(given: Mapping[str, Any], per_unet: bool = True) -> None:
    """Refuse impossible numbers and switches among the arguments of a trainer by name, as `check_number` does; what is
    in neither table is passed over. With ``per_unet``, those that each U-Net has may be lists."""
    for name, fits in NUMBERS.items():
        if name in given:
            value = given[name]
            several = per_unet and name in PER_UNET and isinstance(value, list | tuple)
            for item in value if several else (value,):
                check_number(item, name, fits)
    for name in SWITCHES:
        if name in given and not isinstance(given[name], bool):
            raise TypeError(f"{name} must be True or False, got {given[name]!r}")
    if given.get("on_save_error", "stop") not in ("stop", "warn"):
        raise ValueError(f'on_save_error must be "stop" or "warn", got {given["on_save_error"]!r}')


def check_model(imagen: Any, path: Any) -> None:
    """Refuse what is not a model to train: neither or both of a model and the path of a checkpoint in place of it,
    something else than a model (TypeError), or weights in half precision."""
    if (imagen is None) == (path is None):
        raise ValueError("give the trainer either imagen or imagen_checkpoint_path")
    if imagen is not None and not hasattr(imagen, "unets"):
        raise TypeError(f"imagen must be an Imagen or ElucidatedImagen, got {type(imagen).__name__}")
    for number, unet in enumerate(imagen.unets if imagen is not None else (), start=1):
        for name, item in unet.named_parameters():
            if item.requires_grad and item.is_floating_point() and item.itemsize < 4:
                kind = str(item.dtype).removeprefix("torch.")
                raise ValueError(
                    f"U-Net {number} has weights in {kind} ({name}), in which small updates are lost: call float() on "
                    'the model; precision="bf16" or "fp16" computes in half precision all the same'
                )
