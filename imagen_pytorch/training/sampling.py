"""Sampling from a model in training: only through stages that are trained."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..cascade.cascade import Cascade
from ..images import resample_frames, resize, to_pil, unnormalize


def untrained(unet: nn.Module) -> bool:
    """Return whether a network has its initial weights: its last layer, which starts at zero, still is zero."""
    last = getattr(unet, "final_conv", None)
    return last is not None and not any(bool(item.any()) for item in last.parameters())


def last_trained(unets: Sequence[nn.Module], steps: Sequence[int], first: int = 1) -> int:
    """Return the number of the last U-Net up to which all from ``first`` on are trained; ``first - 1`` if none is.

    A U-Net counts as trained if this trainer has updated it or it came with trained weights. Placeholders count.
    """
    number = first - 1
    for unet, taken in list(zip(unets, steps, strict=True))[first - 1 :]:
        if not taken and not getattr(unet, "is_null", False) and untrained(unet):
            break
        number += 1
    return number


def enlarged(images: Tensor, cascade: Cascade, number: int, sizes: Sequence[Any] | None = None) -> Tensor:
    """Convert the results of stage ``number - 1`` to the size and frames of stage ``number`` (1-based), without a
    network.

    The images are ``(b, c, height, width)`` or ``(b, c, frames, height, width)``; ``sizes`` of all stages take the
    place of the model's.
    """
    before, stage = cascade.stages[number - 2], cascade.stages[number - 1]
    if images.ndim == 5 and before.frame_stride != stage.frame_stride:
        frames = images.shape[2] * before.frame_stride // stage.frame_stride
        places = torch.arange(frames) * (stage.frame_stride / before.frame_stride)
        images = resample_frames(images, places, cascade.temporal_resize_mode)
    return resize(images, stage.size if sizes is None else sizes[number - 1], cascade.resize_mode)


def sample_trained(cascade: Cascade, arguments: Mapping[str, Any], steps: Sequence[int]) -> Any:
    """`Cascade.sample`, with plain enlargement in the place of upsamplers that have not been trained, and a warning.

    The whole cascade runs if not even the first stage is trained, and up to ``stop_at_unet_number`` if that is given.
    The arguments are those of `Cascade.sample` by name; ``steps`` are the updates of each U-Net.
    """
    unets, first = list(cascade.unets), arguments.get("start_at_unet_number", 1)
    stop = arguments.get("stop_at_unet_number")
    last = last_trained(unets, steps, first)
    if last >= (stop or len(unets)):
        return cascade.sample(**arguments)
    if stop is not None or last < first:
        warnings.warn(f"U-Net {last + 1} has not been trained yet: its images are noise", stacklevel=4)
        return cascade.sample(**arguments)
    skipped = [number for number in range(last + 1, len(unets) + 1) if last_trained(unets, steps, number) < number]
    named = " and ".join(f"U-Net {number}" for number in skipped)
    warnings.warn(
        f"{named} {'has' if len(skipped) == 1 else 'have'} not been trained yet: images are enlarged without it; "
        "stop_at_unet_number ends the cascade before",
        stacklevel=4,
    )
    outputs = _passing_over(cascade, arguments, skipped)
    if arguments.get("return_pil_images"):
        pillow = [to_pil(item if cascade.auto_normalize_img else unnormalize(item)) for item in outputs]
        return pillow if arguments.get("return_all_unet_outputs") else pillow[-1]
    return outputs if arguments.get("return_all_unet_outputs") else outputs[-1]


def _passing_over(cascade: Cascade, arguments: Mapping[str, Any], skipped: Sequence[int]) -> list[Tensor]:
    """Return the results of every stage; skipped stages enlarge the result of the one before."""
    if arguments.get("return_pil_images") and cascade.is_video:
        raise ValueError("return_pil_images is for images; a clip is returned as a tensor")
    number, outputs = arguments.get("start_at_unet_number", 1), []
    run = {**arguments, "return_all_unet_outputs": True, "return_pil_images": False}
    while number <= len(cascade.unets):
        if number in skipped:
            outputs.append(enlarged(outputs[-1], cascade, number, arguments.get("image_sizes")))
        else:
            run["stop_at_unet_number"] = min((each - 1 for each in skipped if each > number), default=None)
            if outputs:
                run["start_image_or_video"] = outputs[-1]
            outputs += cascade.sample(**{**run, "start_at_unet_number": number})
        number = arguments.get("start_at_unet_number", 1) + len(outputs)
    return outputs


@dataclass(eq=False)
class TrainerSampling:
    """Samples from a model in training: its cascade, the moving averages of its U-Nets or None, and the updates of each
    so far."""

    cascade: Cascade
    averages: nn.ModuleList | None
    steps: Tensor

    @property
    def unets(self) -> nn.ModuleList:
        """The averaged U-Nets, or the model's own without averages."""
        if self.averages is None:
            return self.cascade.unets
        return nn.ModuleList(average.ema_model for average in self.averages)

    @contextmanager
    def use_ema_unets(self) -> Iterator[None]:
        """Let the model's U-Nets be the averaged ones inside the block; `sample` in other threads waits for its end."""
        with self.cascade.turn:
            own, self.cascade.unets = self.cascade.unets, self.unets
            try:
                yield
            finally:
                self.cascade.unets = own

    def sample(self, *args: Any, use_non_ema: bool = False, **kwargs: Any) -> Any:
        """Return images from the averaged weights.

        An upsampler that has not been trained is passed over: the output of the stage before it is enlarged to its
        size, and a warning names it. ``stop_at_unet_number`` ends the cascade before.

        Args:
            args, kwargs: of `Cascade.sample`.
            use_non_ema: take the weights themselves instead.

        Raises:
            ValueError: as `Cascade.sample`.
            TypeError: an argument that it does not take.
        """
        arguments = dict(inspect.signature(self.cascade.sample).bind(*args, **kwargs).arguments)
        with nullcontext() if use_non_ema else self.use_ema_unets():
            return sample_trained(self.cascade, arguments, self.steps.tolist())
