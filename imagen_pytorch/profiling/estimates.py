"""Parameters, FLOPs and memory of every U-Net of a cascade, estimated without allocating it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..cascade.batch import TrainingBatch
from ..cascade.cascade import Cascade
from ..cascade.stage import is_null, takes_cond_images
from ..diffusion.process import DiffusionProcess
from ..training.precision import Precision
from .metering import CostCounter, SavedTensors
from .shapes import argument, as_rows, fake_copy, frames_of, one_row, tokens_of

#: backward passes cost twice the forward one; gradient checkpointing repeats that
_TRAINING, _CHECKPOINTED = 3, 4


@dataclass(frozen=True)
class Plan:
    """A plan to train and sample a model.

    Attributes:
        batch_size: images or clips of a training step.
        max_batch_size: of these in memory at once; None: all.
        precision: "no", "fp16" or "bf16".
        averages: number of moving averages of the weights.
        frames: of a clip at the full rate; None leaves it to the model.
        device: target device, "cpu" or "cuda": operators store different tensors on each.
        enough: bytes; if the forward pass needs more, the backward pass, which hardly adds to it, is not simulated.
    """

    batch_size: int = 16
    max_batch_size: int | None = None
    precision: str = "no"
    averages: int = 1
    frames: int | None = None
    device: str = "cpu"
    enough: int | None = None

    @property
    def rows(self) -> int:
        """Images or clips in memory at once."""
        return min(self.batch_size, self.max_batch_size or self.batch_size)


@dataclass(frozen=True)
class Cost:
    """The cost of one computation.

    Attributes:
        flops: two per multiply-add.
        saved: bytes that a forward pass keeps for the backward pass.
        peak: largest number of bytes at once, besides weights, gradients and the batch itself.
    """

    flops: int
    saved: int
    peak: int


@dataclass(frozen=True)
class Training:
    """A training step of one U-Net; bytes. Weights and averages are those of all U-Nets, which the trainer holds."""

    flops: int
    weights: int
    averages: int
    gradients: int
    moments: int
    activations: int
    saved_for_backward: int
    total: int


@dataclass(frozen=True)
class Sampling:
    """One image or clip of one U-Net; bytes.

    ``evaluations`` of the network, each of ``passes`` halves: two with guidance.
    """

    flops: int
    evaluations: int
    passes: int
    weights: int
    activations: int
    total: int


@dataclass(frozen=True)
class StageEstimate:
    """Properties and costs of one U-Net. ``forward_flops`` are of one image or clip at full size. ``dim`` is None and
    ``dim_mults`` empty for a network of a user's own that has no such arguments."""

    number: int
    type: str
    dim: int | None
    dim_mults: tuple[float, ...]
    image_size: tuple[int, int]
    crop_size: tuple[int, int] | None
    lowres_size: tuple[int, int] | None
    frames: int | None
    gradient_checkpointing: bool
    parameters: int
    weight_bytes: int
    forward_flops: int
    training: Training
    sampling: Sampling


def evaluations(process: DiffusionProcess) -> int:
    """Count the calls of the network that a sampler makes for one image, by running it."""
    asked = 0

    def denoise(x: Tensor, *_: Any) -> Tensor:
        nonlocal asked
        asked += 1
        return x

    process.sample(denoise, (1, 1, 1, 1), generator=torch.Generator().manual_seed(0))
    return asked


def weight_bytes(network: nn.Module) -> int:
    """Return the bytes of all parameters and buffers."""
    return sum(item.numel() * item.element_size() for item in (*network.parameters(), *network.buffers()))


def gradient_bytes(network: nn.Module) -> int:
    """Return the bytes of the gradients of all trained parameters."""
    return sum(item.numel() * item.element_size() for item in network.parameters() if item.requires_grad)


def held(network: nn.Module, batch: TrainingBatch) -> list[Tensor]:
    """Return all tensors of a network and a batch, which exist before the computation."""
    named = [item for item in vars(batch).values() if isinstance(item, Tensor)]
    return [*network.parameters(), *network.buffers(), *named]


def _fake() -> AbstractContextManager[object]:
    """Return a context whose tensors have a device but no memory. Operators choose the kernels of that device."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode()


def training_cost(cascade: Cascade, number: int, plan: Plan) -> Cost:
    """Return the cost of forward and backward pass of one U-Net (1-based), for the images that are in memory at once.

    The FLOPs are those of the forward pass.
    """
    device, row = torch.device(plan.device), one_row(cascade, number, plan.frames)
    autocast = Precision(plan.precision, device).autocast()
    with _fake():
        unet = fake_copy(cascade.unets[number - 1], device).train()
        batch = as_rows(row, plan.rows, torch.zeros, device)
        meter = CostCounter(tokens_of(unet), held(unet, batch))
        with torch.autograd.set_multithreading_enabled(False), meter.without_gradients(unet):
            with meter, SavedTensors(unet) as saved, autocast:
                loss = cascade.loss(batch, unet)
            kept, forward = saved.release(), meter.flops
            if plan.enough is None or meter.peak <= plan.enough:
                with meter:
                    loss.backward()
    return Cost(forward, kept, meter.peak)


@torch.no_grad()
def sampling_cost(cascade: Cascade, number: int, passes: int, plan: Plan) -> tuple[Cost, int]:
    """Return the cost of one evaluation of a U-Net (1-based) for one image, and the FLOPs of its conditioning.

    With two passes both halves of guidance are evaluated at once. Conditioning is computed once per image.
    """
    device, row = torch.device(plan.device), one_row(cascade, number, plan.frames, whole=True)
    with _fake():
        unet = fake_copy(cascade.unets[number - 1], device).eval()
        batch = as_rows(row, passes, torch.zeros, device)
        place: dict[str, Any] = {"batch": passes, "size": tuple(batch.x0.shape[-2:])}
        if cascade.is_video:
            place["frames"] = batch.x0.shape[2]
        with CostCounter(tokens_of(unet), held(unet, batch)) as meter:
            conditioning = unet.condition(**place, **batch.conditioning())
            once = meter.flops
            unet(batch.x0, torch.zeros(passes, device=device), conditioning)
    return Cost(meter.flops - once, 0, meter.peak), once


def guided_passes(cascade: Cascade, number: int) -> int:
    """Return the number of halves of one evaluation: two if guidance is possible."""
    dropped_images = cascade.cond_images_drop_prob > 0 and takes_cond_images(cascade.unets[number - 1])
    text = cascade.condition_on_text and cascade.can_classifier_guidance
    return 2 if text or dropped_images else 1


def estimate_training(cascade: Cascade, number: int, plan: Plan) -> Training:
    """Return the costs of a training step of one U-Net (1-based). Nothing is allocated on the device "meta"."""
    unet, cost = cascade.unets[number - 1], training_cost(cascade, number, plan)
    times = _CHECKPOINTED if getattr(unet, "gradient_checkpointing", False) else _TRAINING
    # every other step begins with an estimate for self-conditioning, without gradients
    factor = times + (0.5 if unet.self_cond else 0)
    states = training_states(cascade, number, plan)
    return replace(
        states,
        flops=round(cost.flops / plan.rows * plan.batch_size * factor),
        activations=cost.peak,
        saved_for_backward=cost.saved,
        total=states.total + cost.peak,
    )


def training_states(cascade: Cascade, number: int, plan: Plan) -> Training:
    """Return the memory of a training step of one U-Net (1-based) without its activations.

    Nothing is computed, so this takes hardly any time.
    """
    unet = cascade.unets[number - 1]
    weights = sum(weight_bytes(item) for item in cascade.unets)
    gradients = gradient_bytes(unet)
    parts = {
        "weights": weights,
        "averages": weights * plan.averages,
        "gradients": gradients,
        "moments": 2 * gradients,
    }
    return Training(flops=0, **parts, activations=0, saved_for_backward=0, total=sum(parts.values()))


def most_activations(cascade: Cascade, number: int, plan: Plan) -> int:
    """Return an upper bound of the bytes of the activations of a training step, without simulating the network.

    It is the largest possible map, twice for every layer: many times the real need.
    """
    stage, unet = cascade.stages[number - 1], cascade.unets[number - 1]
    height, width = stage.crop or stage.size
    places = max(height * width * (frames_of(cascade, number, plan.frames) or 1), tokens_of(unet))
    layers = sum(1 for item in unet.modules() if not any(True for _ in item.children()))
    width, multiples = argument(unet, "dim"), argument(unet, "dim_mults")
    if width is None or multiples is None:  # of a network of one's own only the weights are known
        channels = max(max(item.shape, default=1) for item in unet.parameters())
    else:
        channels = width * max(1, *multiples)
    return 2 * 4 * plan.rows * places * round(channels) * layers


def _sampling(cascade: Cascade, number: int, plan: Plan) -> tuple[Sampling, int]:
    """Return the cost of one image, and the FLOPs of one pass for it."""
    passes, asked = guided_passes(cascade, number), evaluations(cascade.stages[number - 1].process)
    cost, once = sampling_cost(cascade, number, passes, plan)
    weights = sum(weight_bytes(item) for item in cascade.unets)
    flops = once + asked * cost.flops
    made = Sampling(flops, asked, passes, weights, cost.peak, weights + cost.peak)
    return made, cost.flops // passes


def estimate_stage(cascade: Cascade, number: int, plan: Plan) -> StageEstimate:
    """Return the estimates of one U-Net (1-based) of a cascade. Nothing is allocated on the device "meta".

    Raises:
        ValueError: it is a placeholder, or clips that do not fit its stages.
    """
    unet, stage = cascade.get_unet(number), cascade.stages[number - 1]
    if is_null(unet):
        raise ValueError(f"U-Net {number} is a NullUnet placeholder and costs nothing")
    sampling, forward = _sampling(cascade, number, plan)
    return StageEstimate(
        number=number,
        type=type(unet).__name__,
        dim=argument(unet, "dim"),
        dim_mults=tuple(argument(unet, "dim_mults") or ()),
        image_size=tuple(stage.size),
        crop_size=None if stage.crop is None else tuple(stage.crop),
        lowres_size=tuple(cascade.stages[number - 2].size) if unet.lowres_cond else None,
        frames=frames_of(cascade, number, plan.frames),
        gradient_checkpointing=bool(getattr(unet, "gradient_checkpointing", False)),
        parameters=sum(item.numel() for item in unet.parameters()),
        weight_bytes=weight_bytes(unet),
        forward_flops=forward,
        training=estimate_training(cascade, number, plan),
        sampling=sampling,
    )


def estimate(cascade: Cascade, plan: Plan) -> list[StageEstimate]:
    """Return the estimates of all U-Nets of a cascade except placeholders, in order."""
    numbers = [number for number, unet in enumerate(cascade.unets, start=1) if not is_null(unet)]
    return [estimate_stage(cascade, number, plan) for number in numbers]
