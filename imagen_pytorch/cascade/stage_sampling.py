"""One stage of one `sample()` call: conditioned once, denoised many times."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..diffusion.guidance import GUIDANCE, Guidance, guided
from ..diffusion.process import DiffusionProcess
from ..diffusion.samplers import Inpainting
from ..diffusion.schedules import NoiseLevel
from ..images import Size, resize, shrink_known, unnormalize
from .conditioning import null_text, prepare_cond_images, stacked
from .deepcache import FeatureCache
from .lowres import Direct, Residual, target_space
from .module_state import (
    alone_on_device,
    autocasting,
    compile_once,
    device_of,
    dtype_of,
    inference_weights,
    on_device,
    warn_if_emulated,
)
from .sampling_inputs import SamplingInputs
from .stage import Stage, takes_cond_images
from .video import StageFrames, frame_rate, given_frames, resample_to_stage


class SampleNotFinite(ValueError):
    """A stage generated NaN or infinity."""


class StageRun:
    """One stage of one call.

    Args:
        before: the image of the previous stage, in the caller's range.
    """

    def __init__(self, inputs: SamplingInputs, stage: Stage, unet: nn.Module, before: Tensor | None) -> None:
        self.inputs, self.stage, self.unet = inputs, stage, unet
        self.cascade, self.options = inputs.cascade, inputs.options
        self.choices = inputs.choices[stage.number - 1]
        self.size: Size = inputs.sizes[stage.number - 1]
        self.device = device_of(unet)
        self.dtype = dtype_of(unet)
        # image and noise levels are never in half precision, only what the network computes
        self.precision = torch.promote_types(self.dtype, torch.float32)
        warn_if_emulated(self.options.precision, self.device)
        compile_once(unet, self.options.compile)
        self.process: DiffusionProcess = inputs.processes[stage.number]
        self.guidance = self._guidance()
        self.frames: StageFrames | None = None if inputs.frames is None else inputs.frames.at(stage.frame_stride)
        enlarged = None if before is None else self._enlarged(before)
        self.given, whole = self._given(enlarged)
        self.space: Residual | Direct = target_space(enlarged, stage.residual)
        with autocasting(self.device, self.options.precision):
            self.conditioning = self._condition(whole)
        self.known = self._known()
        self.inner = FeatureCache(self.choices.cache_interval)

    def _enlarged(self, before: Tensor) -> Tensor:
        """Bring the output of the previous stage to this stage's size and frame rate, in [-1, 1]."""
        enlarged = self._to_stage_size(before)
        if self.frames is None:
            return enlarged
        stages, number = self.cascade.stages, self.stage.number
        return resample_to_stage(self.cascade, enlarged, self.stage, stages[number - 2], len(self.frames.noisy))

    def _given(self, enlarged: Tensor | None) -> tuple[dict[str, Tensor], Tensor | None]:
        """Return the given frames as inputs of the network, and the low-resolution clip of all frames."""
        if self.frames is None:
            return {}, enlarged
        number = self.stage.number
        low = self.inputs.sizes[number - 2] if number > 1 else None
        given = given_frames(self.cascade, self.inputs.clip, self.frames, low, self.size)
        named = {}
        names = ("cond_video_frames", "post_cond_video_frames")
        for name, part, base in zip(names, given.images, given.lowres_images, strict=True):
            if part is not None:
                part, base = (None if item is None else item.to(self.device, self.precision) for item in (part, base))
                inside = target_space(base, self.stage.residual).encode(part)
                named[name] = (inside * self.process.clean_scale).to(self.dtype)
        return named, None if enlarged is None else given.around(enlarged, given.lowres_images)

    def _picked(self, clip: Tensor) -> Tensor:
        """Select the frames of this stage from a clip at the full rate."""
        return clip if self.frames is None else clip[:, :, self.frames.noisy.to(clip.device)]

    def _to_stage_size(self, image: Tensor) -> Tensor:
        """Resize an image in the caller's range to this stage's size in [-1, 1]."""
        image = self.cascade.normalize_img(image.to(self.device, self.precision))
        return resize(image, self.size, self.cascade.resize_mode)

    def _guidance(self) -> Guidance:
        inputs, cascade = self.inputs, self.cascade
        takes = takes_cond_images(self.unet) and self.options.cond_images is not None
        if inputs.text is None and not (cascade.cond_images_drop_prob > 0 and takes):
            return GUIDANCE["cfg"](1.0)  # there is nothing to guide on
        guidance = inputs.guidances[self.stage.number - 1]
        trained = inputs.text is None or inputs.negative is not None or cascade.can_classifier_guidance
        if guidance.uses_uncond and not trained:
            raise ValueError(
                "this model was trained with cond_drop_prob=0, so it has no unconditional half: use cond_scale=1"
            )
        return guidance

    # -- conditions: for both halves of guidance in one batch ---------------------------------------------------------

    def _condition(self, enlarged: Tensor | None) -> Any:
        """Encode all conditions of the network."""
        batch = self.inputs.batch
        both = self.guidance.uses_uncond
        keep = torch.ones(batch, dtype=torch.bool, device=self.device)
        named = self._text(keep, both)
        given = self.options.cond_images if takes_cond_images(self.unet) else None
        cond_images, are_given = prepare_cond_images(self.cascade, given, self.unet, batch, self.device)
        if cond_images is not None:
            stage_frames = keep & are_given
            dropped = torch.zeros_like(keep) if self.cascade.cond_images_drop_prob > 0 else stage_frames
            cond_images = cond_images.to(self.dtype)
            named |= {
                "cond_images": torch.cat([cond_images, cond_images]) if both else cond_images,
                "cond_images_keep": torch.cat([stage_frames, dropped]) if both else stage_frames,
            }
        if self.unet.lowres_cond:
            named |= self._lowres(enlarged, both)
        named |= {name: torch.cat([part, part]) if both else part for name, part in self.given.items()}
        return self.unet.condition(batch=batch * (1 + both), size=self.size, **named, **self._when(both))

    def _when(self, both: bool) -> dict[str, Any]:
        """Return the number of frames, their times and their rate."""
        if self.frames is None:
            return {}
        times = self.frames.times
        named: dict[str, Any] = {
            "frames": len(self.frames.noisy),
            "frame_times": torch.cat([times, times]) if both and len(times) > 1 else times,
        }
        rates = frame_rate(self.inputs.clip.fps, self.inputs.batch)
        if rates is not None:
            rates = (rates / self.stage.frame_stride).to(self.device, torch.float32)
            named["fps"] = torch.cat([rates, rates]) if both else rates
        return named

    def _text(self, keep: Tensor, both: bool) -> dict[str, Any]:
        if not self.unet.cond_on_text:
            return {}
        text, negative = self.inputs.text, self.inputs.negative
        if text is None:
            text = null_text(len(keep), self.cascade.text_embed_dim, self.device, self.dtype)
        text = text.to(self.device, self.dtype)
        if both:
            other = text if negative is None else negative.to(self.device, self.dtype)
            text = stacked(text, other)
            keep = torch.cat([keep, torch.zeros_like(keep) if negative is None else keep])
        return {"text_embeds": text.embeds, "text_mask": text.mask, "text_keep": keep}

    def _lowres(self, enlarged: Tensor | None, both: bool) -> dict[str, Tensor]:
        if enlarged is None:
            raise ValueError(f"U-Net {self.stage.number} enlarges an image: give start_image_or_video")
        level = self.choices.lowres_sample_noise_level
        if level is None:
            own = self.cascade.lowres_sample_noise_level
            level = own[self.stage.number - 1] if isinstance(own, list | tuple) else own
        times = torch.full((len(enlarged),), float(level), device=self.device)
        noised, log_snr = self.cascade.augmentation(enlarged, times, self.inputs.generator)
        parts = {"lowres_cond_img": noised.to(self.dtype), "lowres_noise_times": log_snr}
        return {name: torch.cat([part, part]) for name, part in parts.items()} if both else parts

    # -- estimates ----------------------------------------------------------------------------------------------------

    def _network(self, conditioning: Any) -> Any:
        def net(x: Tensor, c_noise: Tensor, x0_before: Tensor | None) -> Tensor:
            before = None if x0_before is None else x0_before.to(self.dtype)
            with torch.inference_mode():
                given = (x.to(self.dtype), c_noise.to(self.precision), conditioning)
                answer = self.inner.answer(self.unet, *given, self_cond=before)
            return answer.to(self.precision)  # in half precision the sampler's sums would be rounded

        return self.process.denoiser(net)

    def _denoise(self) -> Any:
        """Return the denoiser of the sampler: network, guidance, thresholding, in that order."""
        both_halves = alone = self._network(self.conditioning)
        if self.guidance.uses_uncond:
            alone = self._network(self.conditioning.rows(slice(0, self.inputs.batch)))

        def pair(x: Tensor, level: NoiseLevel, x0_before: Tensor | None, both: bool) -> tuple[Tensor, Tensor | None]:
            if not both:
                return alone(x, level, x0_before), None
            before = None if x0_before is None else torch.cat([x0_before, x0_before])
            cond, null = both_halves(torch.cat([x, x]), level, before).chunk(2)
            return cond, null

        steered = guided(pair, self.guidance)

        def denoise(x: Tensor, level: NoiseLevel, x0_before: Tensor | None) -> Tensor:
            return self.stage.threshold(steered(x, level, x0_before), self.space)

        return denoise

    # -- given images -------------------------------------------------------------------------------------------------

    def _known(self) -> tuple[Tensor, Tensor] | None:
        """Return the known pixels at this size, in the caller's range, and their mask."""
        if self.inputs.known is None:
            return None
        image, mask = self.inputs.known
        image, mask = self._picked(image.to(self.device, self.precision)), self._picked(mask.to(self.device))
        return shrink_known(image, mask, self.size)

    def _inpainting(self) -> Inpainting | None:
        if self.known is None:
            return None
        image, mask = self.known
        inside = self.space.encode(self.cascade.normalize_img(image))
        return Inpainting(inside, mask, resample_times=self.options.inpaint_resample_times)

    def _init(self) -> Tensor | None:
        given = self.choices.init_images
        if given is None:
            return None
        return self.space.encode(self._to_stage_size(self._picked(given)))

    def _shape(self) -> tuple[int, ...]:
        frames = () if self.frames is None else (len(self.frames.noisy),)
        return (self.inputs.batch, self.cascade.channels, *frames, *self.size)

    def run(self) -> Tensor:
        """Return the image of this stage, in the caller's range. Known pixels are exactly the caller's."""
        bar = tqdm(disable=not self.options.use_tqdm, desc=f"U-Net {self.stage.number}", unit="step", leave=False)

        def after_step(step: int, total: int, x0: Tensor) -> Any:
            bar.total = total
            bar.update(step + 1 - bar.n)
            if self.options.callback is None:
                return None
            with torch.autocast(self.device.type, enabled=False):
                return self.options.callback(self.stage.number, step, total, unnormalize(self.space.decode(x0)))

        half = autocasting(self.device, self.options.precision)  # sampler and guidance keep their precision
        with bar, inference_weights(self.unet, self.options.precision), half:
            x0 = self.process.sample(
                self._denoise(),
                self._shape(),
                steps=self.choices.steps,
                sampler=self.choices.sampler,
                generator=self.inputs.generator,
                known=self._inpainting(),
                init=self._init(),
                skip_steps=self.choices.skip_steps,
                strength=self.choices.strength,
                callback=after_step,
                device=self.device,
                dtype=self.precision,
            )
        self._check_finite(x0)
        image = self.cascade.unnormalize_img(self.space.decode(x0).clamp(-1, 1))
        # composed in the caller's range: the conversion to the stage's space and back would change the last bits
        return image if self.known is None else torch.where(self.known[1], self.known[0], image)

    def _check_finite(self, x0: Tensor) -> None:
        """Check that a result is finite. NaN would become black.

        Raises:
            SampleNotFinite: names the cause, if it is known.
        """
        if x0.is_meta or bool(x0.isfinite().all()):
            return
        number, named = self.stage.number, self.unet.named_parameters()
        if wrong := [name for name, item in named if not bool(item.isfinite().all())]:
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise SampleNotFinite(
                f"the weights of U-Net {number} are not finite (NaN or infinity in {wrong[0]}{more}): its training "
                "diverged; take an earlier checkpoint"
            )
        cure = "a smaller cond_scale" if self.options.precision == "no" else 'precision="no", or a smaller cond_scale'
        raise SampleNotFinite(
            f"U-Net {number} made values that are not finite (NaN or infinity), though its weights are: try {cure}"
        )


def run_stages(inputs: SamplingInputs) -> list[Tensor]:
    """Return the image of each stage of a call, in the caller's range."""
    outputs: list[Tensor] = []
    before = inputs.start()
    for stage in inputs.stages:
        unet = inputs.cascade.unets[stage.number - 1]
        with _placed(inputs, unet, stage.number - 1):
            before = StageRun(inputs, stage, unet, before).run()
        outputs.append(before)
    return outputs


def _placed(inputs: SamplingInputs, unet: nn.Module, index: int) -> Any:
    target = inputs.device or device_of(unet)
    if inputs.options.use_one_unet_in_gpu and target.type != "cpu":
        return alone_on_device(inputs.cascade.unets, index, target)
    return on_device(unet, target)
