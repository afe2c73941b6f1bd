"""The arguments of a trainer, checked before anything is made of them, and those that it passes on to libraries."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple

import torch

from ..registry import suggestion


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


# -- keywords for other libraries -------------------------------------------------------------------------------------

#: what the trainer itself gives to Adam
_ADAM_OWN = ("params", "lr", "betas", "eps")
_EMA_OWN = ("model", "ema_model", "include_online_model")
#: arguments of the Accelerator that do here what they say
HONOURED = ("cpu", "gradient_accumulation_steps", "kwargs_handlers", "log_with", "mixed_precision", "project_config",
            "project_dir")  # fmt: skip
#: arguments of parts of Accelerate that the trainer does itself, and what to say instead
REFUSED = {
    "device_placement": "the trainer brings model and batches to its device",
    "split_batches": "use split_batches",
    "dataloader_config": "use split_batches, or give add_train_dataset the arguments of a DataLoader",
    "deepspeed_plugin": 'DeepSpeed is not supported; strategy="fsdp2" shards the weights',
    "deepspeed_plugins": 'DeepSpeed is not supported; strategy="fsdp2" shards the weights',
    "fsdp_plugin": 'use strategy="fsdp2"',
    "torch_tp_plugin": 'tensor parallelism is not supported; strategy="fsdp2" shards the weights',
    "megatron_lm_plugin": 'Megatron-LM is not supported; strategy="fsdp2" shards the weights',
    "parallelism_config": 'use strategy="ddp" or "fsdp2"',
    "rng_types": "the trainer keeps its own random state; use seed",
    "gradient_accumulation_plugin": "use accelerate_gradient_accumulation_steps",
    "step_scheduler_with_optimizer": "the rate always follows the updates; use warmup_steps or cosine_decay_max_steps",
    "dynamo_backend": "say compile",
    "dynamo_plugin": "say compile",
}


class Forwarded(NamedTuple):
    """Keyword arguments for the averages, the Accelerator and the optimizer."""

    ema: dict[str, Any]
    accelerate: dict[str, Any]
    adam: dict[str, Any]


def _accepted(callee: type, without: Sequence[str] = ()) -> tuple[str, ...]:
    # of the constructor itself: a metaclass may replace its parameters by *args
    return tuple(name for name in inspect.signature(callee.__init__).parameters if name not in (*without, "self"))


def forwarded(given: Mapping[str, Any], own: Sequence[str]) -> Forwarded:
    """Sort keywords by owner: ``ema_*`` to ema-pytorch, ``accelerate_*`` to Accelerate, the rest to Adam.

    ``own`` are the trainer's own ones, for "did you mean". A TypeError for a keyword that its owner does not take, a
    ValueError for one of Accelerate's whose part the trainer does itself.
    """
    from accelerate import Accelerator
    from ema_pytorch import EMA

    adam = [name for name in _accepted(torch.optim.Adam, _ADAM_OWN) if name != "decoupled_weight_decay"]
    known = {
        "ema_": _accepted(EMA, _EMA_OWN),
        "accelerate_": _accepted(Accelerator),
        "": (*adam, "decoupled_weight_decay"),
    }
    result: dict[str, dict[str, Any]] = {prefix: {} for prefix in known}
    every = (*own, *(prefix + name for prefix, names in known.items() for name in names))
    for keyword, value in given.items():
        prefix = next(prefix for prefix in known if keyword.startswith(prefix))
        name = keyword.removeprefix(prefix)
        if name not in known[prefix]:
            raise TypeError(f'ImagenTrainer takes no argument "{keyword}"{suggestion(keyword, every)}')
        result[prefix][name] = value
    _refuse(result["accelerate_"])
    return Forwarded(result["ema_"], result["accelerate_"], result[""])


def _refuse(given: Mapping[str, Any]) -> None:
    for name in given:
        if name not in HONOURED:
            instead = REFUSED.get(name, "the trainer does that itself")
            raise ValueError(f"accelerate_{name} does nothing here: {instead}")
    for name in ("project_dir", "project_config"):
        if name in given and given.get("log_with") is None:
            raise ValueError(f"accelerate_{name} is for trackers: it needs accelerate_log_with")


def warn_of_lion(use_lion: bool) -> None:
    """Say that the Lion optimizer of old versions is gone."""
    if use_lion:
        warnings.warn("use_lion is no longer supported; training goes on with Adam", DeprecationWarning, stacklevel=3)
