"""The inputs of one `sample()` call: checked once, the same for all stages."""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch
from torch import Tensor

from ..diffusion.process import DiffusionProcess
from ..images import resize
from .base import CascadeBase
from .conditioning import Text, text_input
from .counting import images_of
from .options import SampleOptions, StageChoices, check_text_count
from .sizes import stage_sizes
from .stage import Stage, is_null, takes_cond_images
from .video import ClipInput, check_frame_count, clip_frames


class SamplingInputs:
    """Options, captions, known pixels and generators of one call, and the stages to run."""

    def __init__(self, cascade: CascadeBase, options: SampleOptions, device: torch.device | None) -> None:
        count = len(cascade.unets)
        self.cascade, self.options, self.device = cascade, options, device
        numbers = range(options.start_at_unet_number, (options.stop_at_unet_number or count) + 1)
        self.stages = [cascade.stages[number - 1] for number in numbers]
        self.choices: list[StageChoices] = [options.stage(index, count) for index in range(count)]
        own = (cascade.cond_scale, cascade.guidance)
        self.guidances = [
            options.guide(row.cond_scale, scale, own[1]) for row, scale in zip(self.choices, own[0], strict=True)
        ]
        sizes = options.image_sizes
        self.sizes = tuple(stage.size for stage in cascade.stages) if sizes is None else stage_sizes(sizes, count)
        self._check_networks()
        self.processes = {stage.number: self._process(stage) for stage in self.stages}
        dim = cascade.text_embed_dim if cascade.condition_on_text else None
        self.text = text_input(cascade.encode, dim, options.texts, options.text_embeds, options.text_masks)
        self.batch = images_of(vars(options))
        self.text = None if self.text is None else self.text.repeated(self.batch)
        self.negative = self._negative()
        self._warn_if_not_guided()
        self.generator = options.generators(self.batch)
        self.known = self._known()
        self.clip = self._clip()
        self.frames = clip_frames(cascade, self._frame_count(), self.clip, self.batch) if cascade.is_video else None

    def _check_networks(self) -> None:
        networks = [self.cascade.unets[stage.number - 1] for stage in self.stages]
        for stage, unet in zip(self.stages, networks, strict=True):
            if is_null(unet):
                after = any(not is_null(other) for other in self.cascade.unets[stage.number :])
                cure = "start sampling after it (start_at" if after else "stop sampling before it (stop_at"
                raise ValueError(f"U-Net {stage.number} is a NullUnet: {cure}_unet_number)")
        if self.options.cond_images is not None and not any(takes_cond_images(unet) for unet in networks):
            raise ValueError("cond_images were given, but every U-Net was built without cond_images_channels")

    def _process(self, stage: Stage) -> DiffusionProcess:
        """Return the process of a stage with the bounds of this call.

        Raises:
            ValueError: bounds, steps or fractions of them that do not fit.
        """
        choices, process = self.choices[stage.number - 1], stage.process
        given = {name: getattr(choices, name) for name in ("sigma_min", "sigma_max")}
        bounds = {name: value for name, value in given.items() if value is not None}
        if bounds and not hasattr(process.schedule, "sigma_max"):
            raise ValueError("sigma_min and sigma_max belong to ElucidatedImagen; this stage has another schedule")
        if bounds:
            process = replace(process, schedule=replace(process.schedule, **bounds))
        has_init = choices.init_images is not None
        process.plan(choices.steps, choices.sampler, has_init, choices.skip_steps, choices.strength)
        return process

    def _negative(self) -> Text | None:
        texts = self.options.negative_texts
        if texts is None:
            return None
        if self.text is None:
            raise ValueError("negative_texts need a model that is conditioned on text")
        if not any(self.guidances[stage.number - 1].uses_uncond for stage in self.stages):
            raise ValueError("negative_texts are the captions to guide away from: they need a cond_scale other than 1")
        texts = [texts] * self.batch if isinstance(texts, str) else texts
        check_text_count(texts, self.batch, "negative_texts")
        return self.cascade.encode(texts)

    def _warn_if_not_guided(self) -> None:
        scales = [self.choices[stage.number - 1].cond_scale for stage in self.stages]
        if self.text is None and not self._guides_on_images() and any(scale not in (None, 1) for scale in scales):
            warnings.warn(
                "cond_scale has no effect here: the model takes no captions, and no conditioning images that training "
                "drops (cond_images_drop_prob)",
                stacklevel=5,
            )

    def _guides_on_images(self) -> bool:
        """Return true if conditioning images are given that training sometimes drops."""
        return self.options.cond_images is not None and self.cascade.cond_images_drop_prob > 0

    def _known(self) -> tuple[Tensor, Tensor] | None:
        image, mask = self.options.known_images, self.options.inpaint_masks
        if image is None or mask is None:
            return None
        got = tuple(mask.shape)
        if image.ndim == 5 and mask.ndim == 3:  # the same in every frame
            mask = mask[:, None].expand(-1, image.shape[2], -1, -1)
        mask = mask if mask.ndim == image.ndim else mask[:, None]
        if mask.shape != (self.batch, 1, *image.shape[2:]):
            fits = f"(b, h, w) = {(self.batch, *image.shape[-2:])}"
            fits += f" or (b, f, h, w) = {(self.batch, *image.shape[2:])}" if image.ndim == 5 else ""
            raise ValueError(f"inpaint_masks must be {fits}, got {got}")
        if bool(mask.all()):
            warnings.warn("inpaint_masks are true (= keep) everywhere: nothing is left to inpaint", stacklevel=5)
        return image, mask

    def _clip(self) -> ClipInput:
        options = self.options
        clip = ClipInput(options.cond_video_frames, options.post_cond_video_frames, options.frame_times, options.fps)
        named = clip.given() + [
            name for name in ("video_frames", "inpaint_videos") if getattr(options, name) is not None
        ]
        if named and not self.cascade.is_video:
            raise ValueError(f"this is an image model: it takes no {', '.join(named)}")
        return clip

    def _frame_count(self) -> int:
        """Return the number of frames to generate, at the full rate.

        Raises:
            ValueError: no number is given, or it does not fit the given clips or the frame rates of the stages.
        """
        clips = [("inpaint_images", self.options.known_images)]
        clips += [("init_images", choices.init_images) for choices in self.choices]
        counts = [(name, clip.shape[2]) for name, clip in clips if clip is not None and clip.ndim == 5]
        count = self.options.video_frames
        if count is None:
            count = counts[0][1] if counts else self.cascade.video_frames
        if count is None or count < 1:
            raise ValueError(f"this is a video model: give the number of frames, video_frames=...; got {count}")
        for name, other in counts:
            if other != count:
                raise ValueError(f"{name} must have as many frames as are made, {count}; got {other}")
        check_frame_count(self.stages, count)
        return count

    def start(self) -> Tensor | None:
        """Return the given image of the stage before the first one, in the caller's range; None without one."""
        given = self.options.start_image_or_video
        if given is None:
            return None
        number = self.options.start_at_unet_number - 1
        start = resize(given, self.sizes[number - 1], self.cascade.resize_mode)
        if self.frames is None:
            return start
        before, count = self.cascade.stages[number - 1], self.frames.count
        if start.shape[2] == count:
            return start[:, :, :: before.frame_stride]
        if start.shape[2] * before.frame_stride != count:
            raise ValueError(
                f"start_image_or_video must have {count // before.frame_stride} frames, as U-Net {number} makes, or "
                f"all {count}; got {start.shape[2]}"
            )
        return start
