"""Bits per dimension of images under a model, by a variational bound and by the probability-flow ODE.

Both work with ``x~ = x_t / alpha = x0 + s~ noise`` at the noise level ``s~ = sigma / alpha``, on which alone they
depend, and with the network's estimate ``D`` of x0. Guidance, thresholds and self-conditioning are off, because no
density belongs to them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from ..cascade.conditioning import Text, text_input
from ..cascade.inputs import as_tensor
from ..cascade.limits import check_unet_number
from ..cascade.lowres import target_space
from ..cascade.module_state import device_of, dtype_of, evaluating
from ..cascade.stage import is_null
from ..cascade.training_inputs import TrainingInputs, build_batch, check_training_images, images_of_stage
from ..cascade.video import ClipInput
from ..diffusion.guidance import Denoise
from ..diffusion.schedules import GRIDS, NoiseLevel, Schedule
from ..ranges import check_whole
from ..registry import suggestion
from ..tensors import Generators, expand_to, rand, randn, seeded, widest

if TYPE_CHECKING:
    from ..cascade.cascade import Cascade

#: Largest number of values of an item for which the trace of a Jacobian is computed exactly.
EXACT = 64

#: Half of the number of steps between the 256 values of a byte: the scale of [-1, 1].
HALF_RANGE = 127.5


def bound(
    denoise: Denoise,
    schedule: Schedule,
    x0: Float[Tensor, "b *shape"],
    *,
    steps: int = 1000,
    evaluations: int | None = None,
    generator: Generators = None,
) -> Float[Tensor, " b"]:
    """Compute an upper bound of the negative log-density of each item, in nats.

    The discrete variational bound of Kingma et al. 2021 (arXiv 2107.00630, eq. 11 to 14) over ``steps`` steps, evenly
    spaced in log-SNR: the divergence of the noisiest level from the start of sampling, half of the growth of
    ``1 / s~**2`` in each step times the squared error of the estimate, and ``N(x~, s~**2)`` as decoder at the cleanest
    level. For the exact denoiser its distance from the negative log-density falls as ``1 / steps``.

    Args:
        denoise: ``(x_t, level, x0_before) -> x0``.
        schedule: its family defines ``x_t``; its `sampling_bounds` are used.
        x0: data in the space of the denoiser.
        steps: number of steps of the generative process whose bound this is.
        evaluations: number of steps, spread evenly at random, that are evaluated in place of all of them: the same on
            average in less time. None evaluates all.
        generator: source of the noise.

    Raises:
        ValueError: numbers out of range.
    """
    check_whole(steps, "steps")
    count = check_whole(steps if evaluations is None else evaluations, "evaluations", 1, steps)
    log_snrs = GRIDS["log_snr"](schedule, steps + 1)
    precision = log_snrs.exp()  # 1 / s~**2
    places = rand((len(x0),), generator, dtype=torch.float64) if count < steps else torch.zeros(len(x0))
    total = _squares(x0) * precision[0] / 2
    for index in range(count):
        step = ((index + places) * (steps / count)).long().clamp(max=steps - 1)
        level = NoiseLevel(*(expand_to(part, x0) for part in schedule.level(log_snrs[step].to(x0))))
        x_t = level.alpha * x0 + level.sigma * randn(x0.shape, generator, x0.device, x0.dtype)
        with torch.no_grad():
            error = _squares(x0 - denoise(x_t, level, None))
        total += steps / count * (precision[step + 1] - precision[step]) / 2 * error
    return total + x0[0].numel() / 2 * (math.log(2 * math.pi * math.e) - float(log_snrs[-1]))


def _squares(x: Float[Tensor, "b *shape"]) -> Float[Tensor, " b"]:
    """Return the squared length of each item, in float64 on the CPU."""
    return widest(x).square().flatten(1).sum(1).cpu().double()


def probability_flow(
    denoise: Denoise,
    schedule: Schedule,
    x0: Float[Tensor, "b *shape"],
    *,
    steps: int = 100,
    probes: int | None = None,
    generator: Generators = None,
) -> Float[Tensor, " b"]:
    """Compute the negative log-density of each item under the probability-flow ODE, in nats.

    Song et al. 2021 (arXiv 2011.13456, eq. 39), with ``l = log s~``: ``d x~ / dl = x~ - D`` leads from the data to
    noise ``N(0, s~**2)``, and the log-density changes by the integral of the divergence ``d - tr(dD / dx~)``. Heun's
    method (order 2) on the Karras grid, two evaluations a step. Too few steps make data look more probable: on one
    value from a mixture of known density by 0.016 nats at 50 steps, 0.004 at 100 and 0.001 at 200. Up to `EXACT`
    numbers per item the trace is exact. For more it is Hutchinson's estimate with Rademacher probes, which stay the
    same along the path (Grathwohl et al. 2019, arXiv 1810.01367): unbiased for the log-density.

    Args:
        denoise: ``(x_t, level, x0_before) -> x0``, differentiable, each item independent of the others.
        schedule: its family defines ``x_t``; its `sampling_bounds` are used.
        x0: data in the space of the denoiser.
        steps: number of Heun steps.
        probes: number of probes; None is exact for small items, else one probe.
        generator: source of the probes.

    Raises:
        ValueError: numbers out of range.
    """
    check_whole(steps, "steps")
    exact = probes is None and x0[0].numel() <= EXACT
    count = 0 if exact else check_whole(1 if probes is None else probes, "probes")
    shape = (len(x0), count, *x0.shape[1:])
    signs = 1 - 2 * (rand(shape, generator, x0.device, x0.dtype) < 0.5).to(x0)
    log_snrs = GRIDS["karras"](schedule, steps + 1).flip(0)
    places = (-log_snrs / 2).tolist()

    def slope(x: Tensor, index: int) -> tuple[Tensor, Tensor]:
        return _slope(denoise, schedule, x, log_snrs[index], signs)

    x, integral = x0, torch.zeros(len(x0), dtype=torch.float64)
    for index in range(steps):
        h = places[index + 1] - places[index]
        drift, divergence = slope(x, index)
        drift_after, divergence_after = slope(x + h * drift, index + 1)
        x = x + h / 2 * (drift + drift_after)
        integral += h / 2 * (divergence + divergence_after)
    variance = math.exp(2 * places[-1])
    return (_squares(x) / variance + x0[0].numel() * math.log(2 * math.pi * variance)) / 2 - integral


def _slope(
    denoise: Denoise, schedule: Schedule, x: Tensor, log_snr: Tensor, signs: Float[Tensor, "b p *shape"]
) -> tuple[Tensor, Float[Tensor, " b"]]:
    """Return ``x~ - D`` and its divergence, exactly without probes."""
    level = schedule.level(log_snr)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        x0 = denoise((level.alpha * x).to(x), level, None)
        size, probes = x[0].numel(), signs.shape[1]
        if probes:
            ways = signs.unbind(1)
        else:
            ways = [row.reshape(x.shape[1:]) for row in torch.eye(size, dtype=x.dtype, device=x.device)]
        trace = torch.zeros(len(x), dtype=torch.float64)
        for way in ways:
            (turned,) = torch.autograd.grad((x0 * way).sum(), x, retain_graph=True)
            trace += widest(turned * way).flatten(1).sum(1).cpu()
    return (x - x0).detach(), size - trace / max(probes, 1)


# -- stages of a cascade -----------------------------------------------------------------------------------------------

#: functions that compute the negative log-density, by name
METHODS = {"bound": bound, "probability_flow": probability_flow}


def bits_per_dim(
    cascade: Cascade,
    images: Shaped[Tensor, "b c h w"],
    *,
    unet_number: int = 1,
    method: str = "probability_flow",
    texts: Sequence[str] | None = None,
    text_embeds: Float[Tensor, "b n d"] | None = None,
    text_masks: Shaped[Tensor, "b n"] | None = None,
    cond_images: Shaped[Tensor, "b c2 h2 w2"] | None = None,
    batch_size: int = 16,
    seed: int = 0,
    **options: Any,
) -> Float[Tensor, " b"]:
    """Compute the bits per dimension of each image under one stage of an image model.

    Images are resized to the stage and rounded to 8 bits, and uniform noise as wide as the distance of two grey levels
    is added (uniform dequantisation; Theis et al. 2016, arXiv 1511.01844). The values of a byte keep their positions in
    [-1, 1], 2 / 255 apart. The result is ``-log2 p / d + log2(127.5)`` with the density ``p`` of these ``d`` numbers in
    [-1, 1]. On average over the noise it is at least the cost of the rounded images in bits. An upsampling stage gives
    the bits of its images given the small ones, augmented as in sampling. `mean_interval` gives the mean.

    Args:
        cascade: an `Imagen` or `ElucidatedImagen`.
        images: as for training.
        unet_number: 1-based number of the stage.
        method: "probability_flow" or "bound".
        texts, text_embeds, text_masks, cond_images: as for training, one for each image.
        batch_size: number of images at a time; affects rounding only.
        seed: image i gets seed + i for every draw.
        options: of `bound` (``steps``, ``evaluations``) or `probability_flow` (``steps``, ``probes``).

    Raises:
        ValueError: an unknown method, a video model, or inputs that do not fit the model, as in training.
    """
    if method not in METHODS:
        raise ValueError(f'no method "{method}"; known: {", ".join(METHODS)}{suggestion(method, tuple(METHODS))}')
    number = check_unet_number(unet_number, len(cascade.unets))
    if cascade.is_video or is_null(cascade.unets[number - 1]):
        raise ValueError(f"bits per dimension are of networks for images; U-Net {number} is another one")
    dim = cascade.text_embed_dim if cascade.condition_on_text else None
    text = text_input(cascade.encode, dim, texts, text_embeds, text_masks)
    images, parts = as_tensor(images, "images"), []
    check_whole(batch_size, "batch_size")
    generators = seeded(seed, len(images))
    with cascade.turn, evaluating(cascade):
        for first in range(0, len(images), batch_size):
            rows = slice(first, first + batch_size)
            some = None if text is None else Text(text.embeds[rows], text.mask[rows])
            chosen = None if cond_images is None else cond_images[rows]
            request = TrainingInputs(images[rows], some, chosen, None, ClipInput())
            parts.append(_bits(cascade, number, request, method, generators[rows], options))
    return torch.cat(parts) if parts else torch.zeros(0)


def dequantized(images: Float[Tensor, "b c h w"], generator: Generators = None) -> Float[Tensor, "b c h w"]:
    """Round images in [-1, 1] to 8 bits and add noise, uniform over one grey level."""
    levels = ((images + 1) * HALF_RANGE).round()
    return (levels + rand(images.shape, generator, images.device, images.dtype) - 0.5) / HALF_RANGE - 1


def _bits(
    cascade: Cascade,
    number: int,
    request: TrainingInputs,
    method: str,
    generator: list[torch.Generator],
    options: dict[str, Any],
) -> Float[Tensor, " b"]:
    """Compute the bits per dimension of one batch."""
    stage, unet = replace(cascade.stages[number - 1], crop=None), cascade.unets[number - 1]
    device, dtype = device_of(unet), dtype_of(unet)
    with torch.no_grad():
        batch = build_batch(cascade, stage, request, torch.Generator())  # none of its draws is used
        image, lowres_image = images_of_stage(
            cascade, stage, check_training_images(cascade, request.images, stage, device), None
        )
        named = batch.conditioning()
        if lowres_image is not None:
            given = cascade.lowres_sample_noise_level
            time = given[number - 1] if isinstance(given, list | tuple) else given
            times = torch.full((len(lowres_image),), float(time), device=device)
            noised, log_snr = cascade.augmentation(lowres_image, times, generator)
            named |= {"lowres_cond_img": noised.to(dtype), "lowres_noise_times": log_snr}
        conditioning = unet.condition(batch=len(image), size=stage.size, **named)
        x0 = widest(target_space(batch.base, stage.residual).encode(dequantized(image, generator)))

    def net(x: Tensor, c_noise: Tensor, _: Tensor | None) -> Tensor:
        return unet(x.to(dtype), c_noise.to(torch.promote_types(dtype, torch.float32)), conditioning)

    denoise = stage.process.denoiser(net)
    nats = METHODS[method](denoise, stage.process.schedule, x0, generator=generator, **options)
    size = x0[0].numel()
    # convert the density of residuals to that of images
    nats = nats + size * math.log(1.0 if stage.residual is None else stage.residual)
    return nats / (size * math.log(2)) + math.log2(HALF_RANGE)
