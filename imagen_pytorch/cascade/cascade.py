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
from .batch import TrainingBatch
from .conditioning import text_input
from .counting import images_of
from .feature_loss import perceptual_loss
from .inputs import arrays_as_tensors, as_tensor, independent, sampling_inputs
from .limits import check_flag
from .long_video import sample_long
from .lowres import target_space
from .options import Callback, SampleOptions, check_text_count
from .parts import CascadeParts
from .pieces import in_pieces
from .placement import chosen_device, dtype_of, evaluating
from .preparation import Request, build_batch
from .sampling import SamplingRun
from .stage import Stage, is_null
from .video import ClipInput, Rate


class Cascade(CascadeParts):
    """What `Imagen` and `ElucidatedImagen` share: everything but their tables of choices.

    Arguments, attributes and errors of the constructor are those of `CascadeParts`.
    """

    # -- training ---------------------------------------------------------------------------------------------------

    def _stage_to_train(self, unet_number: int | None) -> Stage:
        if unet_number is None and len(self.unets) > 1:
            raise ValueError(f"say which U-Net to train: unet_number=1 to {len(self.unets)}")
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
        """Prepare pictures or clips for one U-Net and make every random draw of its loss.

        Tensors may be given as NumPy arrays.

        Args:
            images: in [0, 1] ([-1, 1] without auto_normalize_img), or uint8; at least as large as the stage. For a
                video model clips ``(b, c, f, h, w)`` at the full frame rate, or pictures, which are clips of one frame.
            unet_number: 1-based; may be omitted if there is one U-Net.
            texts, text_embeds, text_masks: captions, or their embeddings with a mask (true or 1 = a real token).
            cond_images: conditioning pictures, in [0, 1] or uint8; may be absent where training drops some
                (``cond_images_drop_prob``).
            cond_video_frames, post_cond_video_frames: given frames before and behind a clip, in the range of
                ``images``; the network sees them and does not learn them.
            frame_times: seconds of all frames, given ones included, in the order preceding, clip, following.
            fps: frames per second of the clips, one number or one per clip. The network is told, and without
                ``frame_times`` it spaces the frames.
            ignore_time: the frames of all clips, or of some, are independent pictures.
            noise: fixes the noise instead of drawing it.
            generator: source of every draw.

        Raises:
            ValueError: anything that does not fit the model, with what came and what fits.
            TypeError: whole numbers that are not uint8, or one string for captions.
        """
        stage = self._stage_to_train(unet_number)
        check_generators(generator)
        images, noise = as_tensor(images, "images"), None if noise is None else as_tensor(noise, "noise")
        if texts is not None and text_embeds is None:
            check_text_count(texts, len(images))
        dim = self.text_embed_dim if self.condition_on_text else None
        text = text_input(self.encode, dim, texts, text_embeds, text_masks)
        apart = independent(ignore_time, len(images))
        clip = ClipInput(cond_video_frames, post_cond_video_frames, frame_times, fps, apart)
        return build_batch(self, stage, Request(images, text, cond_images, noise, clip), generator)

    def loss(self, batch: TrainingBatch, unet: nn.Module | None = None) -> Float[Tensor, ""]:
        """Mean loss of a prepared batch; a pure function of the batch and the weights.

        Args:
            batch: from `training_batch`.
            unet: the network to call in place of the model's own, such as a wrapper of it for several processes.
        """
        return self.losses(batch, unet).mean()

    def losses(self, batch: TrainingBatch, unet: nn.Module | None = None) -> Float[Tensor, " b"]:
        """Compute the loss of each item of a prepared batch; arguments as for `loss`, which is their mean."""
        network = self.unets[batch.unet_number - 1] if unet is None else unet
        stage, conditioning = self.stages[batch.unet_number - 1], batch.conditioning()
        space, dtype = target_space(batch.base, stage.residual), dtype_of(self.unets[batch.unet_number - 1])

        def net(x: Tensor, c_noise: Tensor, x0_before: Tensor | None) -> Tensor:
            # the network meets its own estimate as it does in sampling: thresholded
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
        """Training loss of one U-Net: `training_batch`, then `loss`; arguments and errors as there.

        Args:
            unet: as for `loss`; a tensor in its place is ``text_embeds``.
            clip: what `training_batch` takes for clips: ``cond_video_frames``, ``post_cond_video_frames``,
                ``frame_times``, ``fps``, ``ignore_time``.
        """
        if isinstance(unet, Tensor | np.ndarray):  # embeddings in the second place
            if text_embeds is not None:
                raise TypeError("text_embeds were given twice: by name and behind the images")
            unet, text_embeds = None, unet
        if unet is not None and not isinstance(unet, nn.Module):
            raise TypeError(
                f"behind the images come text_embeds or a network, got {type(unet).__name__}; write texts=[...] for "
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
        """Make pictures or clips, stage by stage, in evaluation mode and without gradients.

        Tensors may be given as NumPy arrays. "per-unet" arguments are one value or one per U-Net.

        Args:
            texts, text_embeds, text_masks: captions, or their embeddings with a mask; several decide the batch size.
            video_frames: of a video model, the number of frames at the full rate, whatever it was in training; default:
                the model's own, or that of the given clips. Every ``temporal_downsample_factor`` divides it.
            cond_images: conditioning pictures in [0, 1] or uint8, for every U-Net that takes some; may be absent if
                ``cond_images_drop_prob`` is above 0.
            cond_video_frames, post_cond_video_frames: given frames before and behind the clip, which go on from them.
            inpaint_images (or inpaint_videos), inpaint_masks: known pictures or clips and where to keep them (true),
                ``(b, h, w)`` or, per frame, ``(b, f, h, w)``; numbers are cut in the middle (0.5, or 128 of 0..255).
                Known pixels are clipped to the range of pictures. RePaint with ``inpaint_resample_times`` repeats
                (Lugmayr et al. 2022, arXiv 2201.09865).
            init_images: per-unet; start from these pictures, noised to the level reached by ``skip_steps`` or
                ``strength`` (1 = from pure noise, 0 = the picture itself), both per-unet.
            batch_size: number of pictures; one caption serves all of them, several captions are one for each.
            cond_scale: per-unet guidance weight; 1 turns guidance off (Ho & Salimans 2022, arXiv 2207.12598). None
                takes the model's own.
            cfg_remove_parallel_component, cfg_keep_parallel_frac: projected guidance of estimates, and the share of the
                parallel part that stays (Sadat et al. 2024, arXiv 2410.02416).
            lowres_sample_noise_level: per-unet augmentation time in [0, 1] of the low-resolution picture, in place of
                the model's.
            start_at_unet_number, start_image_or_video, stop_at_unet_number: run a part of the cascade.
            return_all_unet_outputs: a list with the pictures of every stage that was run.
            return_pil_images: Pillow images instead of tensors.
            device: where to run; the networks go there for the call only.
            use_one_unet_in_gpu: keep the other networks on the CPU meanwhile.
            sampler, steps: per-unet sampler name (or object) and number of steps.
            sigma_min, sigma_max: per-unet noise range of an ElucidatedImagen.
            image_sizes: one size per U-Net, other than in training, each an int or (height, width).
            seed: an int (picture i gets seed + i) or one per picture; the same picture in any batch.
            generator: one `torch.Generator`, or one per picture.
            negative_texts: what to guide away from, in place of the empty condition.
            guidance: name of a guidance method, or a ready one, whose scale a ``cond_scale`` other than 1 replaces.
                None takes the model's own.
            frame_times, fps: as for `training_batch`.
            callback: ``callback(unet_number, step, total_steps, picture so far)``; returning False ends the stage.
            max_batch_size: pictures made at once; with ``seed`` they are the same for any number.
            precision: "no", "bf16" or "fp16", in which networks of single precision compute; the picture stays single.
            compile: whether `torch.compile` compiles the networks, once for all steps and calls; or its mode, such as
                "reduce-overhead", which replays small batches as CUDA graphs.
            cache_interval: per-unet; one call of the network in so many computes all of its levels, those between only
                the one with the largest maps. Faster, at some cost in quality (Ma et al. 2024, "DeepCache", arXiv
                2312.00858).

        Returns:
            ``(b, channels, height, width)`` in [0, 1] ([-1, 1] without auto_normalize_img), clips ``(b, channels,
            frames, height, width)``, or a list (of lists).

        One call at a time uses a model: calls from other threads wait for their turn.

        Raises:
            ValueError: arguments that contradict each other or the model, or lie outside of their range; known before
                the first step.
            SampleNotFinite: NaN or infinity in the result; a `ValueError` that names the weights or a cure.
            TypeError: another kind of argument.
        """
        named = {name: value for name, value in locals().items() if name not in ("self", "max_batch_size")}
        check_flag(return_all_unet_outputs, "return_all_unet_outputs")
        if check_flag(return_pil_images, "return_pil_images") and self.is_video:
            raise ValueError("return_pil_images is for pictures; a clip is returned as a tensor")
        if return_pil_images:
            check_channels(self.channels)
        arguments = arrays_as_tensors(named)
        SampleOptions.take(arguments).check(len(self.unets))
        place = chosen_device(device)
        count = images_of(arguments)
        arguments |= sampling_inputs(self, arguments, count)
        if max_batch_size is not None and count > check_whole(max_batch_size, "max_batch_size"):
            return in_pieces(self.sample, arguments, max_batch_size)
        with self.turn, evaluating(self):
            outputs = SamplingRun(self, SampleOptions.take(arguments), place).run()
        if return_pil_images:
            pictures = [to_pil(output if self.auto_normalize_img else unnormalize(output)) for output in outputs]
            return pictures if return_all_unet_outputs else pictures[-1]
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
        """A video of any length, made a window of frames at a time; every frame is made once.

        Args:
            total_frames: its length at the full frame rate.
            window: frames that the network looks at in one call, given ones included; best what it was trained on.
            scheme: "autoregressive" goes forward, given the frames before; "long_range" is given frames from far back
                as well; "hierarchical" spreads a window over the whole video and then fills in between, which a causal
                network cannot. Or a list of (given, new) frame indices, one for each call. Were the network exact, all
                three would be for frames that depend on their neighbours alone; of what a whole video shares the latter
                two lose less (0.09 and 0.06 nats instead of 0.39 on 24 frames by 8), of smooth motion the first
                (0.23 instead of 0.72 and 0.89).
            inpaint: keep given frames by RePaint; any video network can do that. By default they are
                ``cond_video_frames``, which a network has to be trained with (``given_frames_prob``).
            arguments: of `sample`, but those that name or hold frames, and ``return_all_unet_outputs``.

        Returns:
            the clips of the last stage, as `sample`.

        Raises:
            ValueError, TypeError: as `sample`; a scheme that does not make every frame once from frames that exist, or
                a call that could not be made; all known before the first step.
        """
        bound = inspect.signature(Cascade.sample).bind(self, **arguments)
        bound.apply_defaults()
        options = SampleOptions.take(bound.arguments)
        return sample_long(self, total_frames, window, scheme, inpaint, options, arguments)
