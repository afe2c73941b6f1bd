"""Options of models and of `sample()`: checked once on entry, and distributed to the stages."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from torch import Tensor

from ..diffusion.guidance import GUIDANCE, AdaptiveProjected, Guidance
from ..diffusion.losses import LOSSES, NOISE_LEVELS, WEIGHTINGS
from ..diffusion.objectives import OBJECTIVES
from ..diffusion.perceptual import PerceptualLoss
from ..diffusion.samplers import SAMPLERS
from ..diffusion.schedules import SCHEDULES, Schedule
from ..diffusion.spectral import SpectralLoss
from ..images import RESIZE_MODES, TEMPORAL_MODES, Size, as_size
from ..nn.efficientnet import FEATURE_MAPS
from ..ranges import check_whole
from ..registry import Registry, Spec
from ..tensors import Generators, check_generators, per_stage, seeded
from .geometric import LABEL_DIM, GeometricAugmentation
from .inputs import check_rates, check_times
from .limits import (
    MAX_IMAGES,
    MAX_STEPS,
    check_compile,
    check_each,
    check_flag,
    check_fraction,
    check_member,
    check_positive,
    check_scale,
    check_unet_number,
)
from .module_state import check_precision
from .objects import option_objects
from .sizes import crop_entries, is_pair, stage_sizes

#: ``callback(unet_number, step, total_steps, latest estimate in [0, 1])``; returning False ends the stage.
Callback = Callable[[int, int, int, Tensor], Any]

#: arguments of models that are members of a family, one or one per U-Net
FAMILIES: dict[str, Registry[Any]] = {
    "noise_schedules": SCHEDULES,
    "lowres_noise_schedule": SCHEDULES,
    "pred_objectives": OBJECTIVES,
    "loss_space": OBJECTIVES,
    "loss_type": LOSSES,
    "noise_levels": NOISE_LEVELS,
    "weighting": WEIGHTINGS,
    "sampler": SAMPLERS,
    "guidance": GUIDANCE,
}


def plain_member(name: str, value: Any) -> Any:
    """Return an argument of a model with texts in place of objects of its family. Other values pass unchanged.

    Args:
        name: of the argument.
        value: one member, or one per U-Net.

    Raises:
        TypeError: an object of a class that is not registered.
    """
    if name in FAMILIES and isinstance(value, list | tuple):
        return [plain_member(name, item) for item in value]
    family = FAMILIES.get(name)
    if family is None or family.base is None or not isinstance(value, family.base):
        return value
    return family.spell(value)


class _Taken:
    """Dataclasses that take their fields from a larger table of arguments."""

    @classmethod
    def take(cls, arguments: Mapping[str, Any]) -> Any:
        """Build from the entries of ``arguments`` that are fields."""
        return cls(**{field.name: arguments[field.name] for field in fields(cls)})  # type: ignore[arg-type]


@dataclass(frozen=True)
class SharedOptions(_Taken):
    """The constructor arguments that `Imagen` and `ElucidatedImagen` have in common."""

    image_sizes: Any
    text_encoder_name: str | None
    text_encoder: Any
    text_embed_dim: int | None
    channels: int
    self_cond: Any
    cond_drop_prob: float
    cond_images_drop_prob: float
    cond_scale: Any
    guidance: Spec | None
    random_crop_sizes: Any
    lowres_noise_schedule: Spec
    lowres_sample_noise_level: Any
    lowres_residual: Any
    per_sample_random_aug_noise_level: bool
    lowres_max_noise_level: float
    condition_on_text: bool
    auto_normalize_img: bool
    dynamic_thresholding: Any
    dynamic_thresholding_percentile: float
    only_train_unet_number: int | None
    temporal_downsample_factor: Any
    resize_cond_video_frames: bool
    temporal_resize_mode: str
    video_frames: int | None
    fps: float
    fps_drop_prob: float
    given_frames_prob: float
    resize_mode: str
    spectral_loss: Any
    crop_coordinates: Any
    augment: Any
    perceptual_loss: Any

    def check(self, count: int) -> None:
        """Check that all arguments are in range.

        Raises:
            ValueError: names what was given and what fits.
        """
        shares = (
            "cond_drop_prob",
            "cond_images_drop_prob",
            "dynamic_thresholding_percentile",
            "lowres_max_noise_level",
            "fps_drop_prob",
            "given_frames_prob",
        )
        for name in shares:
            check_fraction(getattr(self, name), name)
        switches = (
            "per_sample_random_aug_noise_level",
            "condition_on_text",
            "auto_normalize_img",
            "resize_cond_video_frames",
        )
        for name in switches:
            check_flag(getattr(self, name), name)
        check_each(self.dynamic_thresholding, count, "dynamic_thresholding", check_flag)
        check_each(self.self_cond, count, "self_cond", check_flag)
        check_each(self.crop_coordinates, count, "crop_coordinates", check_flag)
        levels = per_stage(self.lowres_sample_noise_level, count, "lowres_sample_noise_level")
        for level in levels[1:]:  # the first U-Net has no low-resolution image
            check_fraction(level, "lowres_sample_noise_level")
        check_each(levels[0], 1, "lowres_sample_noise_level", check_fraction)
        check_whole(self.channels, "channels", 1, 10_000)
        check_positive(self.fps, "fps")
        if self.text_embed_dim is not None:
            check_whole(self.text_embed_dim, "text_embed_dim", 1, 1_000_000)
        if self.video_frames is not None:
            check_whole(self.video_frames, "video_frames", 1, MAX_IMAGES)
        if self.resize_mode not in RESIZE_MODES:
            raise ValueError(f'no resize_mode "{self.resize_mode}"; known: {", ".join(RESIZE_MODES)}')
        if self.temporal_resize_mode not in TEMPORAL_MODES:
            known = ", ".join(TEMPORAL_MODES)
            raise ValueError(f'no temporal_resize_mode "{self.temporal_resize_mode}"; known: {known}')
        self._check_guidance(count)
        if self.only_train_unet_number is not None:
            check_unet_number(self.only_train_unet_number, count, "only_train_unet_number")

    def _check_guidance(self, count: int) -> None:
        method = check_member(GUIDANCE, "cfg" if self.guidance is None else self.guidance, "guidance")
        if method is self.guidance and method.scale != type(method).scale:
            raise ValueError(f"guidance: give the weight {method.scale} of a ready method as cond_scale")
        for scale in per_stage(self.cond_scale, count, "cond_scale"):
            if scale is None:
                continue
            replace(method, scale=check_scale(scale))
            if self.condition_on_text and not self.cond_drop_prob and not self.cond_images_drop_prob and scale != 1:
                raise ValueError(f"cond_scale={scale} needs cond_drop_prob above 0: guidance compares with no caption")

    def temporal_factors(self, count: int) -> tuple[int, ...]:
        """Return the frame-rate divisor of each stage.

        Raises:
            ValueError: divisors that increase from stage to stage, or whose last one is not 1.
        """
        name = "temporal_downsample_factor"
        factors = per_stage(self.temporal_downsample_factor, count, name)
        whole = all(isinstance(factor, int) and 1 <= factor <= MAX_IMAGES for factor in factors)
        if not whole or list(factors) != sorted(factors, reverse=True) or factors[-1] != 1:
            raise ValueError(
                "temporal_downsample_factor must be whole numbers that never rise from stage to stage and end in 1, "
                f"such as (4, 2, 1); got {factors}"
            )
        return factors

    def lowres_schedule(self) -> Schedule:
        """Return the noise schedule of low-resolution images.

        Raises:
            ValueError: an unknown one, or one whose times do not lie in [0, 1].
        """
        name = self.lowres_noise_schedule
        schedule = check_member(SCHEDULES, name, "lowres_noise_schedule")
        if schedule.time_range() != (1.0, 0.0):
            raise ValueError(
                f'lowres_noise_schedule: the times of "{name}" do not lie in [0, 1], as lowres_sample_noise_level does'
            )
        return schedule

    def sizes(self, count: int) -> tuple[Size, ...]:
        """Return one (height, width) per stage.

        Raises:
            ValueError: another number of sizes than U-Nets, a stage smaller than the one before, or two numbers for
                one U-Net, which may mean two stages or one rectangle.
        """
        if count == 1 and is_pair(self.image_sizes):
            given = tuple(self.image_sizes)
            raise ValueError(
                f"image_sizes={given} for one U-Net: two stages need two U-Nets; one stage of height {given[0]} and "
                f"width {given[1]} is image_sizes=({given},)"
            )
        return stage_sizes(self.image_sizes, count)

    def crops(self, sizes: tuple[Size, ...]) -> tuple[Size | None, ...]:
        """Return the training crop of each stage.

        Raises:
            ValueError: a crop for the first stage, or one larger than its image.
        """
        given = crop_entries(self.random_crop_sizes, len(sizes))
        crops = tuple(None if crop is None else as_size(crop) for crop in given)
        if crops[0] is not None:
            raise ValueError("random_crop_sizes: the first U-Net makes whole images, its entry must be None")
        for crop, size in zip(crops, sizes, strict=True):
            if crop is not None and (crop[0] > size[0] or crop[1] > size[1]):
                raise ValueError(f"a training crop of {crop} does not fit into images of {size}")
        return crops

    def residuals(self, count: int) -> tuple[float | None, ...]:
        """Return the residual scale of each stage.

        Raises:
            ValueError: a scale for the first stage, or one that is not positive.
        """
        scales = _of_upsamplers(self.lowres_residual, count, "lowres_residual")
        if scales[0] is not None:
            raise ValueError("lowres_residual: the first U-Net has no low-resolution image, its entry must be None")
        check_each(scales, count, "lowres_residual", check_positive)
        return scales

    def choices_of_networks(self, count: int) -> tuple[dict[str, Any], ...]:
        """Return the arguments of each network that the model sets, None where it sets none.

        Raises:
            ValueError: coordinates of crops for the first stage, which sees full images.
        """
        located = _of_upsamplers(self.crop_coordinates, count, "crop_coordinates")
        if located[0]:
            raise ValueError("crop_coordinates: the first U-Net makes full images, its entry must be None or False")
        labels = (None if each is None else LABEL_DIM for each in self.augmentations(count))
        names = ("self_cond", "crop_coordinates", "augment_dim")
        columns = (per_stage(self.self_cond, count, "self_cond"), located, labels)
        return tuple(dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True))

    def augmentations(self, count: int) -> tuple[GeometricAugmentation | None, ...]:
        """Return the random geometric changes of the training images of each stage, None where there are none.

        Raises:
            ValueError, TypeError: as `option_objects`.
        """
        return option_objects(GeometricAugmentation, self.augment, count, "augment")

    def perceptual_losses(self, count: int) -> tuple[PerceptualLoss | None, ...]:
        """Return the perceptual loss of each stage, None where there is none.

        Raises:
            ValueError: no such features, or images that are neither grey nor RGB.
            ValueError, TypeError: as `option_objects`.
        """
        losses = option_objects(PerceptualLoss, self.perceptual_loss, count, "perceptual_loss")
        for name in (loss.features for loss in losses if loss is not None):
            if name not in FEATURE_MAPS:
                raise ValueError(f'perceptual_loss: no features "{name}"; known: {", ".join(FEATURE_MAPS)}')
            if self.channels not in (1, 3):
                raise ValueError(f"perceptual_loss needs images of 1 or 3 channels, the model has {self.channels}")
        return losses

    def spectral_losses(self, count: int) -> tuple[SpectralLoss | None, ...]:
        """Return the frequency-weighted loss of each stage, None where there is none.

        Raises:
            ValueError, TypeError: as `option_objects`.
        """
        return option_objects(SpectralLoss, self.spectral_loss, count, "spectral_loss")


def _of_upsamplers(value: Any, count: int, name: str) -> tuple[Any, ...]:
    """Return a value for each stage. A single value for several stages applies to those after the first."""
    values = per_stage(value, count, name)
    return (None, *values[1:]) if count > 1 and not isinstance(value, list | tuple) else values


@dataclass(frozen=True)
class SampleOptions(_Taken):
    """The arguments of `Cascade.sample`, documented there."""

    texts: Sequence[str] | None
    text_masks: Tensor | None
    text_embeds: Tensor | None
    video_frames: int | None
    cond_images: Tensor | None
    cond_video_frames: Tensor | None
    post_cond_video_frames: Tensor | None
    frame_times: Tensor | None
    fps: float | Sequence[float] | Tensor | None
    inpaint_videos: Tensor | None
    inpaint_images: Tensor | None
    inpaint_masks: Tensor | None
    inpaint_resample_times: int
    init_images: Any
    skip_steps: Any
    strength: Any
    batch_size: int
    cond_scale: Any
    guidance: Spec | None
    cfg_remove_parallel_component: bool
    cfg_keep_parallel_frac: float
    lowres_sample_noise_level: Any
    start_at_unet_number: int
    start_image_or_video: Tensor | None
    stop_at_unet_number: int | None
    use_tqdm: bool
    use_one_unet_in_gpu: bool
    sampler: Any
    steps: Any
    sigma_min: Any
    sigma_max: Any
    image_sizes: Any
    seed: int | Sequence[int] | None
    generator: Generators
    negative_texts: str | Sequence[str] | None
    callback: Callback | None
    precision: str
    compile: bool | str
    cache_interval: Any

    def check(self, count: int) -> None:
        """Check that the arguments are in range and do not contradict each other.

        Raises:
            ValueError: names what was given and what fits.
            TypeError: a value of another type.
        """
        self._check_numbers(count)
        self._check_choices(count)
        last = count if self.stop_at_unet_number is None else self.stop_at_unet_number
        if not 1 <= self.start_at_unet_number <= last <= count:
            raise ValueError(
                f"U-Nets are numbered 1 to {count}: cannot start at {self.start_at_unet_number} and stop at {last}"
            )
        if (self.start_at_unet_number > 1) != (self.start_image_or_video is not None):
            raise ValueError(
                "start_at_unet_number above 1 needs start_image_or_video, the image to begin from"
                if self.start_image_or_video is None
                else "start_image_or_video is the input of an upsampler: it needs start_at_unet_number above 1"
            )
        if self.inpaint_images is not None and self.inpaint_videos is not None:
            raise ValueError("inpaint_images and inpaint_videos are two names of the same: give one of them")
        if (self.known_images is None) != (self.inpaint_masks is None):
            raise ValueError(
                "inpaint_images (or inpaint_videos) and inpaint_masks belong together: give both or neither"
            )
        if self.seed is not None and self.generator is not None:
            raise ValueError("give seed or generator, not both")
        if self.cfg_remove_parallel_component and self.guidance not in (None, "cfg", "apg"):
            raise ValueError('cfg_remove_parallel_component is the guidance "apg"; give no other guidance with it')

    def _check_numbers(self, count: int) -> None:
        check_whole(self.inpaint_resample_times, "inpaint_resample_times", 1, 10_000)
        check_fraction(self.cfg_keep_parallel_frac, "cfg_keep_parallel_frac")
        check_whole(self.start_at_unet_number, "start_at_unet_number", -math.inf)
        if self.stop_at_unet_number is not None:
            check_whole(self.stop_at_unet_number, "stop_at_unet_number", -math.inf)
        if self.video_frames is not None:
            check_whole(self.video_frames, "video_frames", 1, MAX_IMAGES)
        check_each(self.steps, count, "steps", check_whole, 1, MAX_STEPS)
        check_each(self.skip_steps, count, "skip_steps", check_whole, 0, MAX_STEPS)
        check_each(self.strength, count, "strength", check_fraction)
        check_each(self.cond_scale, count, "cond_scale", check_scale)
        check_each(self.lowres_sample_noise_level, count, "lowres_sample_noise_level", check_fraction)
        check_each(self.sigma_min, count, "sigma_min", check_positive)
        check_each(self.sigma_max, count, "sigma_max", check_positive)
        check_each(self.cache_interval, count, "cache_interval", check_whole, 1, MAX_STEPS)
        if self.frame_times is not None:
            check_times(self.frame_times)
        if self.fps is not None:
            check_rates(self.fps)

    def _check_choices(self, count: int) -> None:
        for name in ("cfg_remove_parallel_component", "use_tqdm", "use_one_unet_in_gpu"):
            check_flag(getattr(self, name), name)
        for sampler in per_stage(self.sampler, count, "sampler"):
            if sampler is not None:
                check_member(SAMPLERS, sampler, "sampler")
        if self.guidance is not None:
            check_member(GUIDANCE, self.guidance, "guidance")
        check_precision(self.precision)
        check_compile(self.compile)
        if self.callback is not None and not callable(self.callback):
            raise TypeError(f"callback must be callable, got {type(self.callback).__name__}")
        check_generators(self.generator)

    @property
    def known_images(self) -> Tensor | None:
        """Return the partly known images or clips."""
        return self.inpaint_videos if self.inpaint_images is None else self.inpaint_images

    def generators(self, batch: int) -> Generators:
        """Return the source of all random draws of this call."""
        return self.generator if self.seed is None else seeded(self.seed, batch)

    def stage(self, index: int, count: int) -> StageChoices:
        """Return the options of stage ``index`` (0-based)."""
        names = [field.name for field in fields(StageChoices)]
        return StageChoices(**{name: per_stage(getattr(self, name), count, name)[index] for name in names})

    def guide(self, scale: float | None, own_scale: float | None, own_method: Spec | None) -> Guidance:
        """Return the guidance of one stage.

        Args:
            scale: the weight of this call. None takes that of a ready method, else the model's own. A weight of 1
                leaves a ready method as it is.
            own_scale, own_method: the model's own options. None means 1 and "cfg". The own weight is reduced to the
                largest one that the method accepts.
        """
        if isinstance(self.guidance, Guidance):
            return self.guidance if scale in (None, 1) else replace(self.guidance, scale=scale)
        spec = "apg" if self.cfg_remove_parallel_component else self.guidance or own_method or "cfg"
        method: Guidance = GUIDANCE.make(spec, AdaptiveProjected(eta=self.cfg_keep_parallel_frac))
        if scale is None:
            scale = min(1.0 if own_scale is None else own_scale, method.largest_scale)
        return replace(method, scale=scale)


@dataclass(frozen=True)
class StageChoices:
    """The part of `SampleOptions` for one stage."""

    init_images: Tensor | None
    skip_steps: int | None
    strength: float | None
    cond_scale: float | None
    lowres_sample_noise_level: float | None
    sampler: Spec | None
    steps: int | None
    sigma_min: float | None
    sigma_max: float | None
    cache_interval: int


def check_texts(texts: Any, what: str = "texts") -> None:
    """Check that this is a list of captions.

    Raises:
        TypeError: names the given type.
    """
    if isinstance(texts, str):
        raise TypeError(f'{what} must be a list of captions, got one string; write {what}=["..."]')
    if not isinstance(texts, Sequence | np.ndarray):
        raise TypeError(f"{what} must be a list of strings, got {type(texts).__name__}")
    if wrong := [item for item in texts if not isinstance(item, str)]:
        raise TypeError(f"{what} must be a list of strings, got {type(wrong[0]).__name__} among them")


def check_text_count(texts: Sequence[str] | Tensor, batch: int, what: str = "texts") -> None:
    """Check that there are as many captions as images.

    Raises:
        TypeError: one string instead of a list.
        ValueError: the numbers differ.
    """
    if not isinstance(texts, Tensor):
        check_texts(texts, what)
    if len(texts) != batch:
        raise ValueError(f"{batch} images need as many {what}, got {len(texts)}")
