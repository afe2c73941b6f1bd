"""One `sample()` call: the stages in order, each conditioned once and denoised many times."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..diffusion.guidance import GUIDANCE, Guidance, guided
from ..diffusion.process import DiffusionProcess
from ..diffusion.samplers import Known
from ..diffusion.schedules import Level
from ..images import Size, resize, shrink_known, unnormalize
from .conditioning import Text, conditioning_pictures, null_text, stacked, text_input
from .lowres import Direct, Residual, target_space
from .options import SampleOptions, StageChoices, check_share, check_text_count, stage_sizes
from .placement import alone_on_device, device_of, dtype_of, on_device
from .stage import Stage, is_null, takes_pictures

if TYPE_CHECKING:
    from .parts import CascadeParts


class SamplingRun:
    """The state of one call: options, captions, generators. Between stages a picture is in the caller's range."""

    def __init__(self, cascade: CascadeParts, options: SampleOptions, device: torch.device | None) -> None:
        count = len(cascade.unets)
        options.check(count)
        self.cascade, self.options, self.device = cascade, options, device
        numbers = range(options.start_at_unet_number, (options.stop_at_unet_number or count) + 1)
        self.stages = [cascade.stages[number - 1] for number in numbers]
        self.choices: list[StageChoices] = [options.stage(index, count) for index in range(count)]
        sizes = options.image_sizes
        self.sizes = tuple(stage.size for stage in cascade.stages) if sizes is None else stage_sizes(sizes, count)
        self._check_networks()
        dim = cascade.text_embed_dim if cascade.condition_on_text else None
        self.text = text_input(cascade.encode, dim, options.texts, options.text_embeds, options.text_masks)
        self.batch = self._batch_size()
        self.negative = self._negative()
        self.generator = options.generators(self.batch)
        self.known = self._known()

    def _check_networks(self) -> None:
        networks = [self.cascade.unets[stage.number - 1] for stage in self.stages]
        for stage, unet in zip(self.stages, networks, strict=True):
            if is_null(unet):
                raise ValueError(f"U-Net {stage.number} is a NullUnet: start sampling behind it (start_at_unet_number)")
        if self.options.cond_images is not None and not any(takes_pictures(unet) for unet in networks):
            raise ValueError("cond_images were given, but every U-Net was built without cond_images_channels")

    def _batch_size(self) -> int:
        options = self.options
        if self.text is not None:
            return len(self.text.embeds)
        init = [choices.init_images for choices in self.choices]
        given = (options.inpaint_images, options.cond_images, options.start_image_or_video, *init)
        counts = [len(pictures) for pictures in given if pictures is not None]
        return counts[0] if counts and options.batch_size == 1 else options.batch_size

    def _negative(self) -> Text | None:
        texts = self.options.negative_texts
        if texts is None:
            return None
        if self.text is None:
            raise ValueError("negative_texts need a model that is conditioned on text")
        scales = [self.choices[stage.number - 1].cond_scale for stage in self.stages]
        if not any(self.options.guide(scale).needs_null_somewhere for scale in scales):
            raise ValueError("negative_texts are what guidance leads away from: they need a cond_scale other than 1")
        texts = [texts] * self.batch if isinstance(texts, str) else texts
        check_text_count(texts, self.batch, "negative_texts")
        return self.cascade.encode(texts)

    def pictures(self, given: Tensor, name: str) -> Tensor:
        """Pictures of the caller as floats in the caller's range, one per item of the batch.

        Raises:
            ValueError: another shape or number.
            TypeError: whole numbers that are not uint8.
        """
        if given.ndim != 4 or given.shape[1] != self.cascade.channels:
            fits = f"(batch, {self.cascade.channels}, height, width)"
            raise ValueError(f"{name} must be {fits}, got {tuple(given.shape)}")
        if len(given) != self.batch:
            raise ValueError(f"{self.batch} pictures need as many {name}, got {len(given)}")
        return self.cascade.as_given(given, name)

    def _known(self) -> tuple[Tensor, Tensor] | None:
        image, mask = self.options.inpaint_images, self.options.inpaint_masks
        if image is None or mask is None:
            return None
        image = self.pictures(image, "inpaint_images")
        mask = (mask if mask.ndim == image.ndim else mask[:, None]).bool()
        if mask.shape != (self.batch, 1, *image.shape[2:]):
            got = tuple(self.options.inpaint_masks.shape)
            raise ValueError(f"inpaint_masks must be (b, h, w) = {(self.batch, *image.shape[2:])}, got {got}")
        if bool(mask.all()):
            warnings.warn("inpaint_masks are true (= keep) everywhere: nothing is left to paint", stacklevel=5)
        return image, mask

    def _start(self) -> Tensor | None:
        given = self.options.start_image_or_video
        if given is None:
            return None
        size = self.sizes[self.options.start_at_unet_number - 2]
        return resize(self.pictures(given, "start_image_or_video"), size, self.cascade.resize_mode)

    def run(self) -> list[Tensor]:
        """The picture of each stage, in the caller's range."""
        outputs: list[Tensor] = []
        before = self._start()
        for stage in self.stages:
            unet = self.cascade.unets[stage.number - 1]
            with self._placed(unet, stage.number - 1):
                before = StageRun(self, stage, unet, before).run()
            outputs.append(before)
        return outputs

    def _placed(self, unet: nn.Module, index: int) -> Any:
        target = self.device or device_of(unet)
        if self.options.use_one_unet_in_gpu and target.type != "cpu":
            return alone_on_device(self.cascade.unets, index, target)
        return on_device(unet, target)


class StageRun:
    """One stage of one call.

    Args:
        before: the picture of the stage before, in the caller's range.
    """

    def __init__(self, run: SamplingRun, stage: Stage, unet: nn.Module, before: Tensor | None) -> None:
        self.run_, self.stage, self.unet = run, stage, unet
        self.cascade, self.options = run.cascade, run.options
        self.choices = run.choices[stage.number - 1]
        self.size: Size = run.sizes[stage.number - 1]
        self.device = device_of(unet)
        self.dtype = dtype_of(unet)
        # picture and noise levels are never in half precision, only what the network computes
        self.precision = torch.promote_types(self.dtype, torch.float32)
        self.process = self._process()
        self.guidance = self._guidance()
        enlarged = None if before is None else self._modelled(before)
        self.space: Residual | Direct = target_space(enlarged, stage.residual)
        self.conditioning = self._condition(enlarged)
        self.known = self._known()

    def _modelled(self, picture: Tensor) -> Tensor:
        """A picture in the caller's range as one of this stage's size in [-1, 1]."""
        picture = self.cascade.normalize_img(picture.to(self.device, self.precision))
        return resize(picture, self.size, self.cascade.resize_mode)

    def _process(self) -> DiffusionProcess:
        given = {name: getattr(self.choices, name) for name in ("sigma_min", "sigma_max")}
        bounds = {name: value for name, value in given.items() if value is not None}
        process = self.stage.process
        if not bounds:
            return process
        if not hasattr(process.schedule, "sigma_max"):
            raise ValueError("sigma_min and sigma_max belong to ElucidatedImagen; this stage has another schedule")
        return replace(process, schedule=replace(process.schedule, **bounds))

    def _guidance(self) -> Guidance:
        run, cascade = self.run_, self.cascade
        if run.text is None and not (cascade.cond_images_drop_prob > 0 and takes_pictures(self.unet)):
            return GUIDANCE["cfg"](1.0)  # there is nothing to guide on
        guidance = self.options.guide(self.choices.cond_scale)
        trained = run.text is None or run.negative is not None or cascade.can_classifier_guidance
        if guidance.needs_null_somewhere and not trained:
            raise ValueError(
                "this model was trained with cond_drop_prob=0, so it has no unconditional half: use cond_scale=1"
            )
        return guidance

    # -- conditions: for both halves of guidance in one batch ---------------------------------------------------------

    def _condition(self, enlarged: Tensor | None) -> Any:
        """All that the network needs besides the noisy picture."""
        batch = self.run_.batch
        both = self.guidance.needs_null_somewhere
        keep = torch.ones(batch, dtype=torch.bool, device=self.device)
        named = self._text(keep, both)
        given = self.options.cond_images if takes_pictures(self.unet) else None
        pictures = conditioning_pictures(given, self.unet, batch, self.device)
        if pictures is not None:
            dropped = torch.zeros_like(keep) if self.cascade.cond_images_drop_prob > 0 else keep
            pictures = pictures.to(self.dtype)
            named |= {
                "cond_images": torch.cat([pictures, pictures]) if both else pictures,
                "cond_images_keep": torch.cat([keep, dropped]) if both else keep,
            }
        if self.unet.lowres_cond:
            named |= self._lowres(enlarged, both)
        return self.unet.condition(batch=batch * (1 + both), size=self.size, **named)

    def _text(self, keep: Tensor, both: bool) -> dict[str, Any]:
        if not self.unet.cond_on_text:
            return {}
        text, negative = self.run_.text, self.run_.negative
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
            raise ValueError(f"U-Net {self.stage.number} enlarges a picture: give start_image_or_video")
        level = self.choices.lowres_sample_noise_level
        if level is None:
            own = self.cascade.lowres_sample_noise_level
            level = own[self.stage.number - 1] if isinstance(own, list | tuple) else own
        check_share(level, "lowres_sample_noise_level")
        times = torch.full((len(enlarged),), float(level), device=self.device)
        noised, told = self.cascade.augmentation(enlarged, times, self.run_.generator)
        parts = {"lowres_cond_img": noised.to(self.dtype), "lowres_noise_times": told}
        return {name: torch.cat([part, part]) for name, part in parts.items()} if both else parts

    # -- estimates ----------------------------------------------------------------------------------------------------

    def _network(self, conditioning: Any) -> Any:
        def net(x: Tensor, c_noise: Tensor, x0_before: Tensor | None) -> Tensor:
            before = None if x0_before is None else x0_before.to(self.dtype)
            return self.unet(x.to(self.dtype), c_noise.to(self.precision), conditioning, self_cond=before)

        return self.process.denoiser(net)

    def _denoise(self) -> Any:
        """The denoiser that samplers see: network, guidance, thresholding, in that order."""
        both_halves = alone = self._network(self.conditioning)
        if self.guidance.needs_null_somewhere:
            alone = self._network(self.conditioning.rows(slice(0, self.run_.batch)))

        def pair(x: Tensor, level: Level, x0_before: Tensor | None, both: bool) -> tuple[Tensor, Tensor | None]:
            if not both:
                return alone(x, level, x0_before), None
            before = None if x0_before is None else torch.cat([x0_before, x0_before])
            cond, null = both_halves(torch.cat([x, x]), level, before).chunk(2)
            return cond, null

        steered = guided(pair, self.guidance)

        def denoise(x: Tensor, level: Level, x0_before: Tensor | None) -> Tensor:
            return self.stage.threshold(steered(x, level, x0_before), self.space)

        return denoise

    # -- given pictures -----------------------------------------------------------------------------------------------

    def _known(self) -> tuple[Tensor, Tensor] | None:
        """The known pixels at this size, in the caller's range, and where they are."""
        if self.run_.known is None:
            return None
        image, mask = self.run_.known
        return shrink_known(image.to(self.device, self.precision), mask.to(self.device), self.size)

    def _kept(self) -> Known | None:
        if self.known is None:
            return None
        image, mask = self.known
        inside = self.space.encode(self.cascade.normalize_img(image))
        return Known(inside, mask, resample_times=self.options.inpaint_resample_times)

    def _init(self) -> Tensor | None:
        given = self.choices.init_images
        return None if given is None else self.space.encode(self._modelled(self.run_.pictures(given, "init_images")))

    def run(self) -> Tensor:
        """The picture of this stage, in the caller's range; known pixels are the caller's own."""
        bar = tqdm(disable=not self.options.use_tqdm, desc=f"U-Net {self.stage.number}", unit="step", leave=False)

        def after_step(step: int, total: int, x0: Tensor) -> Any:
            bar.total = total
            bar.update(step + 1 - bar.n)
            if self.options.callback is None:
                return None
            return self.options.callback(self.stage.number, step, total, unnormalize(self.space.decode(x0)))

        with bar:
            x0 = self.process.sample(
                self._denoise(),
                (self.run_.batch, self.cascade.channels, *self.size),
                steps=self.choices.steps,
                sampler=self.choices.sampler,
                generator=self.run_.generator,
                known=self._kept(),
                init=self._init(),
                skip_steps=self.choices.skip_steps,
                strength=self.choices.strength,
                callback=after_step,
                device=self.device,
                dtype=self.precision,
            )
        picture = self.cascade.unnormalize_img(self.space.decode(x0).clamp(-1, 1))
        # pasted in the caller's range: on the way to the stage's space and back their last bits would change
        return picture if self.known is None else torch.where(self.known[1], self.known[0], picture)
