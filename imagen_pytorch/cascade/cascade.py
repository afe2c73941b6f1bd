"""A cascade of diffusion models: networks in order, each with its process, trained and sampled together."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from ..diffusion.guidance import Guidance
from ..images import check_channels, to_pil, unnormalize
from ..ranges import check_whole
from ..tensors import Generators, check_generators
from .base import CascadeBase
from .batch import TrainingBatch
from .batching import in_batches
from .conditioning import text_input
from .counting import images_of
from .feature_loss import perceptual_loss
from .inputs import arrays_as_tensors, as_tensor, check_ignore_time, sampling_inputs
from .limits import check_flag
from .long_video import sample_long
from .lowres import target_space
from .module_state import chosen_device, dtype_of, evaluating
from .options import Callback, SampleOptions, check_text_count
from .sampling_inputs import SamplingInputs
from .stage import Stage, is_null
from .stage_sampling import run_stages
from .training_inputs import TrainingInputs, build_batch
from .video import ClipInput, Rate


class Cascade(CascadeBase):
    """The common part of `Imagen` and `ElucidatedImagen`: all except their default choices.

    Arguments, attributes and errors of the constructor are those of `CascadeBase`.
    """

    # -- training ---------------------------------------------------------------------------------------------------

    def _stage_to_train(self, unet_number: int | None) -> Stage:
        if unet_number is None and len(self.unets) > 1:
            raise ValueError(f"choose the U-Net to train: unet_number=1 to {len(self.unets)}")
        number = 1 if unet_number is None else unet_number
        unet = self.get_unet(number)
        if self.only_train_unet_number not in (None, number):
            raise ValueError(f"only U-Net {self.only_train_unet_number} may be trained here, got {number}")
        if is_null(unet):
            raise ValueError(f"U-Net {number} is a NullUnet placeholder and cannot be trained")
        return self.stages[number - 1]

    def training_batch(
        self,
        images: Shaped[Tensor, "b c *space"] | np.ndarray,
        *,
        unet_number: int | None = None,
        texts: Sequence[str] | None = None,
        text_embeds: Float[Tensor, "b n d"] | np.ndarray | None = None,
        text_masks: Shaped[Tensor, "b n"] | np.ndarray | None = None,
        cond_images: Shaped[Tensor, "b c2 *space2"] | np.ndarray | None = None,
        cond_video_frames: Shaped[Tensor, "b c f2 h2 w2"] | np.ndarray | None = None,
        post_cond_video_frames: Shaped[Tensor, "b c f3 h3 w3"] | np.ndarray | None = None,
        frame_times: Float[Tensor, "b3 m"] | np.ndarray | None = None,
        fps: Rate = None,
        ignore_time: bool | Shaped[Tensor, " b"] | np.ndarray = False,
        noise: Float[Tensor, "b c *noise"] | np.ndarray | None = None,
        generator: Generators = None,
    ) -> TrainingBatch:
        """Prepare images or clips for one U-Net and make every random draw of its loss.

        Tensors may be given as NumPy arrays.

        Args:
            images: in [0, 1] ([-1, 1] without auto_normalize_img), or uint8; at least as large as the stage. For a
                video model clips ``(b, c, f, h, w)`` at the full frame rate, or images, which are clips of one frame.
            unet_number: 1-based; may be omitted if there is one U-Net.
            texts, text_embeds, text_masks: captions, or their embeddings with a mask (true or 1 = a real token).
            cond_images: conditioning images, in [0, 1] or uint8. May be absent if training drops some
                (``cond_images_drop_prob``).
            cond_video_frames, post_cond_video_frames: given frames before and after a clip, in the range of
                ``images``. The network sees them and is not trained to generate them.
            frame_times: seconds of all frames, given ones included, in the order preceding, clip, following.
            fps: frames per second of the clips, one number or one per clip. It conditions the network, and without
                ``frame_times`` it spaces the frames.
            ignore_time: treat the frames of all clips, or of some, as independent images.
            noise: fixes the noise instead of drawing it.
            generator: source of all random draws.

        Raises:
            ValueError: an argument that does not fit the model. The message names what was given and what fits.
            TypeError: integers that are not uint8, or one string for captions.
        """
        stage = self._stage_to_train(unet_number)
        check_generators(generator)
        images, noise = as_tensor(images, "images"), None if noise is None else as_tensor(noise, "noise")
        if texts is not None and text_embeds is None:
            check_text_count(texts, len(images))
        dim = self.text_embed_dim if self.condition_on_text else None
        text = text_input(self.encode, dim, texts, text_embeds, text_masks)
        independent = check_ignore_time(ignore_time, len(images))
        clip = ClipInput(cond_video_frames, post_cond_video_frames, frame_times, fps, independent)
        return build_batch(self, stage, TrainingInputs(images, text, cond_images, noise, clip), generator)

    def loss(self, batch: TrainingBatch, unet: nn.Module | None = None) -> Float[Tensor, ""]:
        """Return the mean loss of a prepared batch, a pure function of the batch and the weights.

        Args:
            batch: from `training_batch`.
            unet: the network to call in place of the model's own, such as a wrapper of it for several processes.
        """
        return self.losses(batch, unet).mean()

    def losses(self, batch: TrainingBatch, unet: nn.Module | None = None) -> Float[Tensor, " b"]:
        """Return the loss of each item of a prepared batch. Arguments as for `loss`, which is their mean."""
        network = self.unets[batch.unet_number - 1] if unet is None else unet
        stage, conditioning = self.stages[batch.unet_number - 1], batch.conditioning()
        space, dtype = target_space(batch.base, stage.residual), dtype_of(self.unets[batch.unet_number - 1])

        def net(x: Tensor, c_noise: Tensor, x0_before: Tensor | None) -> Tensor:
            # as in sampling, the network receives its own estimate after thresholding
            before = None if x0_before is None else stage.threshold(x0_before, space)
            return network(x.to(dtype), c_noise, self_cond=before, **conditioning)

        of_estimate = perceptual_loss(batch, stage)
        draws = (batch.t, batch.noise, batch.self_condition)
        return stage.process.loss(net, batch.x0, *draws, of_estimate=of_estimate)

    def forward(
        self,
        images: Shaped[Tensor, "b c *space"] | np.ndarray,
        unet: nn.Module | Tensor | np.ndarray | None = None,
        texts: Sequence[str] | None = None,
        text_embeds: Float[Tensor, "b n d"] | np.ndarray | None = None,
        text_masks: Shaped[Tensor, "b n"] | np.ndarray | None = None,
        unet_number: int | None = None,
        cond_images: Shaped[Tensor, "b c2 *space2"] | np.ndarray | None = None,
        noise: Float[Tensor, "b c *noise"] | np.ndarray | None = None,
        generator: Generators = None,
        **clip: Any,
    ) -> Float[Tensor, ""]:
        """Return the training loss of one U-Net: `training_batch`, then `loss`. Arguments and errors as there.

        Args:
            unet: as for `loss`; a tensor in its place is ``text_embeds``.
            clip: arguments of `training_batch` for clips: ``cond_video_frames``, ``post_cond_video_frames``,
                ``frame_times``, ``fps``, ``ignore_time``.
        """
        if isinstance(unet, Tensor | np.ndarray):  # embeddings in the second place
            if text_embeds is not None:
                raise TypeError("text_embeds were given twice: by name and after the images")
            unet, text_embeds = None, unet
        if unet is not None and not isinstance(unet, nn.Module):
            raise TypeError(
                f"after the images come text_embeds or a network, got {type(unet).__name__}; write texts=[...] for "
                "captions and unet_number=... for a number"
            )
        batch = self.training_batch(
            images,
            unet_number=unet_number,
            texts=texts,
            text_embeds=text_embeds,
            text_masks=text_masks,
            cond_images=cond_images,
            noise=noise,
            generator=generator,
            **clip,
        )
        return self.loss(batch, unet)

    # -- sampling ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self,
        texts: Sequence[str] | None = None,
        text_masks: Shaped[Tensor, "b n"] | np.ndarray | None = None,
        text_embeds: Float[Tensor, "b n d"] | np.ndarray | None = None,
        video_frames: int | None = None,
        cond_images: Shaped[Tensor, "b c2 h2 w2"] | np.ndarray | None = None,
        cond_video_frames: Shaped[Tensor, "b c f4 h4 w4"] | np.ndarray | None = None,
        post_cond_video_frames: Shaped[Tensor, "b c f5 h5 w5"] | np.ndarray | None = None,
        inpaint_videos: Shaped[Tensor, "b c *space"] | np.ndarray | None = None,
        inpaint_images: Shaped[Tensor, "b c *space"] | np.ndarray | None = None,
        inpaint_masks: Shaped[Tensor, "b *mask"] | np.ndarray | None = None,
        inpaint_resample_times: int = 5,
        init_images: Any = None,
        skip_steps: int | Sequence[int | None] | None = None,
        batch_size: int = 1,
        cond_scale: float | Sequence[float] | None = None,
        *,
        cfg_remove_parallel_component: bool = False,
        cfg_keep_parallel_frac: float = 0.0,
        lowres_sample_noise_level: float | Sequence[float | None] | None = None,
        start_at_unet_number: int = 1,
        start_image_or_video: Shaped[Tensor, "b c *start"] | np.ndarray | None = None,
        stop_at_unet_number: int | None = None,
        return_all_unet_outputs: bool = False,
        return_pil_images: bool = False,
        device: torch.device | str | None = None,
        use_tqdm: bool = True,
        use_one_unet_in_gpu: bool = False,
        sampler: Any = None,
        steps: int | Sequence[int | None] | None = None,
        sigma_min: float | Sequence[float | None] | None = None,
        sigma_max: float | Sequence[float | None] | None = None,
        image_sizes: Sequence[int | Sequence[int]] | None = None,
        seed: int | Sequence[int] | None = None,
        generator: Generators = None,
        negative_texts: str | Sequence[str] | None = None,
        guidance: str | Guidance | None = None,
        callback: Callback | None = None,
        strength: float | Sequence[float | None] | None = None,
        frame_times: Float[Tensor, "b6 m"] | np.ndarray | None = None,
        fps: Rate = None,
        max_batch_size: int | None = None,
        precision: str = "no",
        compile: bool | str = False,
        cache_interval: int | Sequence[int] = 1,
    ) -> Any:
        """Generate images or clips, stage by stage, in evaluation mode and without gradients.

        Tensors may be given as NumPy arrays. "per-unet" arguments are one value or one per U-Net.

        Args:
            texts, text_embeds, text_masks: captions, or their embeddings with a mask. Several captions set the batch
                size.
            video_frames: number of frames of a video model at the full rate, independent of training. Default: the
                model's own, or that of the given clips. It is a multiple of every ``temporal_downsample_factor``.
            cond_images: conditioning images in [0, 1] or uint8, for every U-Net that takes some. May be absent if
                ``cond_images_drop_prob`` is above 0.
            cond_video_frames, post_cond_video_frames: given frames before and after the clip, which the clip continues.
            inpaint_images (or inpaint_videos), inpaint_masks: known images or clips and a mask of the pixels to keep
            (true),
                ``(b, h, w)`` or, per frame, ``(b, f, h, w)``. Numbers are thresholded in the middle (0.5, or 128 of
                0..255). Known pixels are clipped to the range of images. RePaint with ``inpaint_resample_times``
                repeats (Lugmayr et al. 2022, arXiv 2201.09865).
            init_images: per-unet; start from these images, noised to the level that ``skip_steps`` or ``strength``
                gives (1 = from pure noise, 0 = the image itself), both per-unet.
            batch_size: number of images. One caption serves all of them, several captions are one for each.
            cond_scale: per-unet guidance weight; 1 turns guidance off (Ho & Salimans 2022, arXiv 2207.12598). None
                takes the model's own.
            cfg_remove_parallel_component, cfg_keep_parallel_frac: projected guidance of estimates, and the fraction of
                the parallel component that is kept (Sadat et al. 2024, arXiv 2410.02416).
            lowres_sample_noise_level: per-unet augmentation time in [0, 1] of the low-resolution image, in place of
                the model's.
            start_at_unet_number, start_image_or_video, stop_at_unet_number: run a part of the cascade.
            return_all_unet_outputs: return a list with the images of every stage that was run.
            return_pil_images: return Pillow images instead of tensors.
            device: device to run on. The networks are moved there during the call only.
            use_one_unet_in_gpu: keep the other networks on the CPU meanwhile.
            sampler, steps: per-unet sampler name (or object) and number of steps.
            sigma_min, sigma_max: per-unet noise range of an ElucidatedImagen.
            image_sizes: one size per U-Net, other than in training, each an int or (height, width).
            seed: an int (image i gets seed + i) or one per image. An image is the same in any batch.
            generator: one `torch.Generator`, or one per image.
            negative_texts: captions to guide away from, in place of the empty condition.
            guidance: name of a guidance method, or a ready one, whose scale a ``cond_scale`` other than 1 replaces.
                None takes the model's own.
            frame_times, fps: as for `training_batch`.
            callback: ``callback(unet_number, step, total_steps, latest estimate)``; returning False ends the stage.
            max_batch_size: number of images generated at once. With ``seed`` they are the same for any number.
            precision: "no", "bf16" or "fp16", in which networks of single precision compute. The image stays single.
            compile: compile the networks with `torch.compile`, once for all steps and calls; or its mode, such as
                "reduce-overhead", which replays small batches as CUDA graphs.
            cache_interval: per-unet; one of ``cache_interval`` calls of the network computes all of its levels, the
                others only the one with the largest maps. Faster, at some cost in quality (Ma et al. 2024, "DeepCache",
                arXiv 2312.00858).

        Returns:
            ``(b, channels, height, width)`` in [0, 1] ([-1, 1] without auto_normalize_img), clips ``(b, channels,
            frames, height, width)``, or a list (of lists).

        A model serves one call at a time. Calls from other threads wait.

        Raises:
            ValueError: arguments that contradict each other or the model, or are out of range. Raised before the first
                step.
            SampleNotFinite: NaN or infinity in the result; a `ValueError` that names the weights or a cure.
            TypeError: an argument of another type.
        """
        named = {name: value for name, value in locals().items() if name not in ("self", "max_batch_size")}
        check_flag(return_all_unet_outputs, "return_all_unet_outputs")
        if check_flag(return_pil_images, "return_pil_images") and self.is_video:
            raise ValueError("return_pil_images is for images; a clip is returned as a tensor")
        if return_pil_images:
            check_channels(self.channels)
        arguments = arrays_as_tensors(named)
        SampleOptions.take(arguments).check(len(self.unets))
        place = chosen_device(device)
        count = images_of(arguments)
        arguments |= sampling_inputs(self, arguments, count)
        if max_batch_size is not None and count > check_whole(max_batch_size, "max_batch_size"):
            return in_batches(self.sample, arguments, max_batch_size)
        with self.turn, evaluating(self):
            outputs = run_stages(SamplingInputs(self, SampleOptions.take(arguments), place))
        if return_pil_images:
            images = [to_pil(output if self.auto_normalize_img else unnormalize(output)) for output in outputs]
            return images if return_all_unet_outputs else images[-1]
        return outputs if return_all_unet_outputs else outputs[-1]

    def sample_long(
        self,
        total_frames: int,
        window: int,
        scheme: str | Sequence[tuple[Sequence[int], Sequence[int]]] = "autoregressive",
        *,
        inpaint: bool = False,
        **arguments: Any,
    ) -> Float[Tensor, "b c f h w"]:
        """Generate a video of any length, one window of frames at a time. Every frame is generated once.

        Args:
            total_frames: its length at the full frame rate.
            window: number of frames of one call, given ones included; best the number that the network was trained on.
            scheme: "autoregressive" goes forward, given the frames before. "long_range" is given earlier frames as
                well. "hierarchical" distributes a window over the complete video first and then fills in between, which
                a causal network does not support. Or a list of (given, new) frame indices, one for each call. With an
                exact network all three are exact for frames that depend on their neighbours alone. Of structure that a
                complete video shares the latter two lose less (0.09 and 0.06 nats instead of 0.39 on 24 frames by 8),
                of smooth motion the first (0.23 instead of 0.72 and 0.89).
            inpaint: keep given frames by RePaint, which any video network supports. By default they are
                ``cond_video_frames``, which a network has to be trained with (``given_frames_prob``).
            arguments: of `sample`, without those that name or hold frames, and without ``return_all_unet_outputs``.

        Returns:
            the clips of the last stage, as `sample`.

        Raises:
            ValueError, TypeError: as `sample`; a scheme that does not generate every frame once from frames that exist,
                or an impossible call. All are raised before the first step.
        """
        bound = inspect.signature(Cascade.sample).bind(self, **arguments)
        bound.apply_defaults()
        options = SampleOptions.take(bound.arguments)
        return sample_long(self, self.sample, total_frames, window, scheme, inpaint, options, arguments)
