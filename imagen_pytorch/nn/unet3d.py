"""The video U-Net: the image U-Net for every frame, and layers between frames (Ho et al. 2022, Imagen Video, arXiv
2210.02303, section 2.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..construction import records_construction
from ..images import Size, resize
from .arguments import check_arguments
from .blocks import Context
from .conditioning import Conditioning
from .embeddings import FourierFeatures
from .frames import USUAL_FPS, Frames, usual_times
from .persistence import UNETS
from .temporal import VideoGeometry
from .unet import Unet


@dataclass(frozen=True)
class VideoConditioning(Conditioning):
    """The conditioning of a video network. ``m`` is the number of all frames, given and noisy ones.

    Attributes:
        preceding, following: given frames before and after the noisy ones, at working size.
        num_frames: number of noisy frames.
        time_deltas: seconds from each frame (row) to each other (column), in the order of time: ``(b, m, m)``, or
            ``(1, m, m)`` if all clips have the same; None if frames are independent images.
        time_order: ``(b, m)`` or ``(1, m)``, indices that sort the given frames by time; None if they are sorted.
        independent: ``(b,)``, true for clips whose frames are independent images; None if there are none, or only such.
    """

    preceding: Tensor | None = None
    following: Tensor | None = None
    num_frames: int = 1
    time_deltas: Tensor | None = None
    time_order: Tensor | None = None
    independent: Tensor | None = None

    @property
    def noisy_slice(self) -> slice:
        """Return the positions of the noisy frames among all frames, in the order in which they were given."""
        first = 0 if self.preceding is None else self.preceding.shape[2]
        return slice(first, first + self.num_frames)

    @property
    def total(self) -> int:
        """Return the number of all frames."""
        return self.noisy_slice.stop + (0 if self.following is None else self.following.shape[2])

    def with_given_frames(self, x: Float[Tensor, "b c f h w"], blank: bool = False) -> Float[Tensor, "b c m h w"]:
        """Put the noisy frames between the given ones, or between zeros."""
        around = [None if part is None else part.to(x.dtype) for part in (self.preceding, self.following)]
        preceding, following = [torch.zeros_like(part) if blank and part is not None else part for part in around]
        return torch.cat([part for part in (preceding, x, following) if part is not None], dim=2)

    def by_time(self, x: Tensor) -> Tensor:
        """Reshape a clip ``(b, c, m, h, w)`` to a batch of frames ``(b m) c h w`` in the order of time."""
        if self.time_order is not None:
            x = x.gather(2, _along_frames(self.time_order, x))
        return x.transpose(1, 2).flatten(0, 1)

    def as_given(self, maps: Tensor, batch: int) -> Tensor:
        """Reshape a batch of frames back to the noisy frames of clips ``(b, c, f, h, w)``."""
        clips = maps.unflatten(0, (batch, -1)).transpose(1, 2)
        if self.time_order is not None:
            clips = clips.gather(2, _along_frames(self.time_order.argsort(dim=1), clips))
        return clips[:, :, self.noisy_slice]


def _along_frames(time_order: Tensor, clips: Tensor) -> Tensor:
    """Expand an order of frames to the shape that ``gather`` needs."""
    return time_order[:, None, :, None, None].expand(clips.shape[0], clips.shape[1], -1, *clips.shape[3:])


def _numbers(values: Tensor | float) -> list[float]:
    """Return numbers that can be read without waiting for an accelerator."""
    if not isinstance(values, Tensor):
        return [values]
    return values.flatten().tolist() if values.device.type == "cpu" else []


def time_deltas_between(
    times: Float[Tensor, "b m"], rising: bool = False
) -> tuple[Float[Tensor, "b m m"], Int[Tensor, "b m"] | None]:
    """Return the seconds between all pairs of frames in the order of time, and that order if the frames are not sorted.

    Rounded to a microsecond, so that a constant rate gives the same number for the same distance.

    Args:
        times: seconds.
        rising: the frames are known to be in the order of time, so no number is read.
    """
    time_order = None
    if not rising and bool((times.diff(dim=1) < 0).any()):
        time_order = times.argsort(dim=1, stable=True)
        times = times.gather(1, time_order)
    time_deltas = times[:, None, :] - times[:, :, None]
    return ((time_deltas * 1e6).round() / 1e6).float(), time_order


@UNETS.register("Unet3D")
class Unet3D(Unet):
    """A U-Net for clips of any number of frames, height and width. It takes the arguments of `Unet`, and those below.

    Every layer processes one frame at a time, with two exceptions. Residual blocks have a convolution over frames after
    theirs over pixels. After the first convolution, on every level and in the middle there is attention between the
    frames of each pixel. These layers start as identities, so that a new video network treats frames like images and
    keeps what it learned from images.

    Args:
        time_rel_pos_bias_depth: layers of the network that computes an attention bias from the time between two frames.
        time_causal_attn: frames see only themselves and earlier ones.
        layer_temporal_attns: per-level, attention between frames. The first entry also applies to the first
            convolution.
        temporal_strides: per-level, number of frames that are merged into one in that level and those below. If the
            first level of a causal network merges frames, ``init_conv_to_final_conv_residual`` is on by default.
        ff_time_token_shift: feed-forwards shift half of their features to the next frame.
        kwargs: of `Unet`. ``layer_attns``, attention within a frame, is off by default.

    Raises:
        ValueError: as `Unet`.
    """

    defaults = {"layer_attns": False}
    is_video = True
    _mask_channels = 1

    @records_construction
    def __init__(
        self,
        *,
        time_rel_pos_bias_depth: int = 2,
        time_causal_attn: bool = True,
        layer_temporal_attns: bool | Sequence[bool] = True,
        temporal_strides: int | Sequence[int] = 1,
        ff_time_token_shift: bool = True,
        **kwargs: Any,
    ) -> None:
        check_arguments(Unet3D.__init__, locals())
        first = temporal_strides[0] if isinstance(temporal_strides, Sequence) else temporal_strides
        if time_causal_attn and first > 1:  # otherwise the frames between would not see themselves at full rate
            kwargs = {"init_conv_to_final_conv_residual": True, **kwargs}
        self.geometry = VideoGeometry(
            causal=time_causal_attn,
            strides=temporal_strides,
            attends=layer_temporal_attns,
            token_shift=ff_time_token_shift,
            bias_depth=time_rel_pos_bias_depth,
        )
        super().__init__(**{**self.defaults, **kwargs})
        emb = self.to_time_cond.out_features
        features = kwargs.get("learned_sinu_pos_emb_dim", 16)
        self.to_rate_cond = nn.Sequential(
            FourierFeatures(features), nn.Linear(features + 1, emb), nn.SiLU(), nn.Linear(emb, emb)
        )
        self.null_rate_hidden = nn.Parameter(torch.zeros(1, emb))  # so that unknown rates change nothing at first

    @property
    def is_causal(self) -> bool:
        """True if frames see only themselves and earlier ones."""
        return self.geometry.causal

    # -- once per call ----------------------------------------------------------------------------------------------

    def condition(  # type: ignore[override]
        self,
        *,
        batch: int,
        size: Size,
        frames: int,
        lowres_cond_img: Float[Tensor, "b c f2 h2 w2"] | None = None,
        cond_video_frames: Float[Tensor, "b c f3 h3 w3"] | None = None,
        post_cond_video_frames: Float[Tensor, "b c f4 h4 w4"] | None = None,
        frame_times: Float[Tensor, "b3 m"] | None = None,
        fps: Float[Tensor, " b"] | float | None = None,
        fps_keep: Bool[Tensor, " b"] | None = None,
        ignore_time: Bool[Tensor, " b"] | bool = False,
        **conditions: Any,
    ) -> VideoConditioning:
        """Encode everything that does not depend on the noise level, once per call.

        Args:
            batch, size, frames: number of clips, their height and width, and their number of noisy frames.
            lowres_cond_img: low-resolution clip, noised: of all frames, given ones included, or of the noisy ones. In
                the latter case given frames are used in place of their low-resolution form.
            cond_video_frames, post_cond_video_frames: given frames before and after the noisy ones, scaled to about
                unit variance. A separate channel marks them.
            frame_times: seconds of all frames, given ones included, in the order preceding, noisy, following. They need
                not
                increase: a given frame may lie between noisy ones.
            fps: frames per second, of all clips or of each. Without ``frame_times`` it spaces the frames.
            fps_keep: false hides the rate from the network.
            ignore_time: treat frames as independent images, in all clips or in some.
            conditions: captions, low-resolution noise level and conditioning images, as for `Unet.condition`.

        Raises:
            ValueError: as `Unet.condition`; numbers of frames that do not fit each other or ``temporal_strides``; given
                frames after the noisy ones in a causal network.
        """
        image = super().condition(batch=batch, size=size, lowres_cond_img=lowres_cond_img, **conditions)
        named = {name: getattr(image, name) for name in Conditioning.__dataclass_fields__}
        preceding, following = (
            None if part is None else resize(part, size) for part in (cond_video_frames, post_cond_video_frames)
        )
        cond = VideoConditioning(**named, preceding=preceding, following=following, num_frames=frames)
        self._check_given(cond, batch)
        cond = replace(cond, lowres=self._lowres(cond))
        if isinstance(ignore_time, bool) and ignore_time:
            return cond
        independent = None if isinstance(ignore_time, bool) else ignore_time
        times = self._times(frame_times, fps, cond, batch)
        self.check_frames(times, cond.noisy_slice, independent)
        time_deltas, time_order = time_deltas_between(times, rising=frame_times is None)
        device = self.null_rate_hidden.device
        rate = self._rate(fps, fps_keep, batch)
        rate = rate if independent is None else rate.masked_fill(independent[:, None], 0)
        return replace(
            cond,
            emb=rate if cond.emb is None else cond.emb + rate,
            time_deltas=time_deltas.to(device),
            time_order=None if time_order is None else time_order.to(device),
            independent=independent,
        )

    def _check_given(self, cond: VideoConditioning, batch: int) -> None:
        for name, part in (("cond_video_frames", cond.preceding), ("post_cond_video_frames", cond.following)):
            if part is not None and (part.ndim != 5 or part.shape[:2] != (batch, self.channels)):
                fits = f"({batch}, {self.channels}, frames, height, width)"
                raise ValueError(f"{name} must be {fits}, got {tuple(part.shape)}")

    def _lowres(self, cond: VideoConditioning) -> Tensor | None:
        lowres = cond.lowres
        if lowres is None or lowres.shape[2] == cond.total:
            return lowres
        if lowres.shape[2] != cond.num_frames:
            raise ValueError(
                f"lowres_cond_img must have {cond.total} frames (all of them) or {cond.num_frames} (the noisy ones), "
                f"got {lowres.shape[2]}"
            )
        return cond.with_given_frames(lowres)

    def check_frames(self, times: Float[Tensor, "b m"], noisy_slice: slice, independent: Tensor | None = None) -> None:
        """Check that the network can process these frames together.

        Args:
            times: seconds of all frames in the order preceding, noisy, following.
            noisy_slice: positions of the noisy frames.
            independent: ``(b,)``, true for clips whose frames are independent images.

        Raises:
            ValueError: a number of frames that does not fit ``temporal_strides``; given frames after the noisy ones in
                a causal network.
        """
        total, divisor = times.shape[1], math.prod(self.strides)
        if total % divisor:
            raise ValueError(
                f"temporal_strides={self.geometry.strides} need a number of frames that {divisor} divides, given ones "
                f"included; got {total}"
            )
        if divisor > 1 and independent is not None:
            raise ValueError("with temporal_strides, ignore_time is true or false for all clips of a batch")
        known = torch.cat([times[:, : noisy_slice.start], times[:, noisy_slice.stop :]], dim=1)
        # a compiled or exported network must not read numbers
        looks = self.geometry.causal and known.shape[1] > 0 and not torch.compiler.is_compiling()
        if looks and bool((known.amax(1) > times[:, noisy_slice].amin(1)).any()):
            raise ValueError(
                "this network is causal (time_causal_attn=True): its frames cannot see given ones that follow them "
                "(post_cond_video_frames, or later frame_times); build it with time_causal_attn=False"
            )

    def _times(
        self, given: Tensor | None, fps: Tensor | float | None, cond: VideoConditioning, batch: int
    ) -> Float[Tensor, "b m"]:
        """Return the seconds of all frames, on the CPU, where double precision always exists.

        Raises:
            ValueError: another number of times than frames; times that are not finite; a rate that is not positive.
        """
        noisy_slice, total = cond.noisy_slice, cond.total
        looks = fps is not None and not torch.compiler.is_compiling()
        if looks and not all(0 < rate < math.inf for rate in _numbers(fps)):
            raise ValueError(f"fps must be positive numbers, got {fps}")
        if given is None:
            times = usual_times(total, USUAL_FPS if fps is None else fps, first=-noisy_slice.start)
            # a compiled or exported network must not read numbers
            one = not torch.compiler.is_compiling() and len(times) > 1 and bool((times == times[:1]).all())
            return times[:1] if one else times  # one bias serves all clips
        if given.ndim != 2 or given.shape[1] != total or len(given) not in (1, batch):
            raise ValueError(
                f"frame_times must be (batch, {total}) seconds, one for each frame, given ones included; got "
                f"{tuple(given.shape)}"
            )
        times = given.cpu().double()
        if not torch.compiler.is_compiling() and not bool(times.isfinite().all()):
            raise ValueError("frame_times must be finite numbers of seconds, got NaN or infinities")
        if bool((times == times[:1]).all()):
            times = times[:1]  # one bias serves all clips
        return times

    def _rate(self, fps: Tensor | float | None, keep: Tensor | None, batch: int) -> Float[Tensor, "b d"]:
        null = self.null_rate_hidden.expand(batch, -1)
        if fps is None:
            return null
        rates = torch.as_tensor(fps, device=null.device, dtype=torch.float32).expand(batch)
        known = self.to_rate_cond(torch.log2(rates))
        return known if keep is None else torch.where(keep[:, None], known, null)

    # -- at every step ----------------------------------------------------------------------------------------------

    def forward(  # type: ignore[override]
        self,
        x: Float[Tensor, "b c f h w"],
        time: Float[Tensor, " b"],
        conditioning: VideoConditioning | None = None,
        *,
        self_cond: Float[Tensor, "b c f h w"] | None = None,
        cond_drop_prob: float = 0.0,
        text_keep: Bool[Tensor, " b"] | None = None,
        inner: Sequence[Tensor] | None = None,
        return_inner: bool = False,
        **conditions: Any,
    ) -> Float[Tensor, "b c2 f h w"] | tuple[Float[Tensor, "b c2 f h w"], list[Tensor]]:
        """Return the prediction for a noisy clip.

        Args:
            x: the clip, scaled to about unit variance.
            time, conditioning, self_cond, cond_drop_prob, text_keep, inner, return_inner: as for `Unet.forward`.
            conditions: without a ready ``conditioning``, the other arguments of `condition`: ``text_embeds``,
                ``text_mask``, ``lowres_cond_img``, ``lowres_noise_times``, ``cond_images``, ``cond_images_keep``,
                ``crop_window``, ``augment_label``, ``cond_video_frames``, ``post_cond_video_frames``,
                ``frame_times``, ``fps``, ``fps_keep`` and ``ignore_time``.

        Raises:
            ValueError: as `Unet.forward` and `condition`.
        """
        self._check_input(x, time, self_cond, "frames, height, width")
        named = {**conditions, "text_keep": self._draw_text_keep(x, text_keep, cond_drop_prob)}
        if conditions.get("ignore_time") is False:
            del named["ignore_time"]
        size = tuple(x.shape[-2:])
        cond = self._resolve_conditioning(conditioning, named, batch=x.shape[0], size=size, frames=x.shape[2])
        stacked = cond.by_time(self._stack(x, self_cond, cond))
        lowres = None if cond.lowres is None else cond.by_time(cond.lowres)
        maps, inner = self._answer(stacked, lowres, self._embed_frame_times(time, cond), inner)
        answer = cond.as_given(maps, x.shape[0])
        return (answer, inner) if return_inner else answer

    def _stack(self, x: Tensor, self_cond: Tensor | None, cond: VideoConditioning) -> Tensor:  # type: ignore[override]
        """Concatenate all inputs of the first convolution per frame. Per-clip inputs are repeated for every frame."""
        parts = [cond.with_given_frames(x)]
        if self.self_cond:
            before = torch.zeros_like(x) if self_cond is None else self_cond.to(x.dtype)
            parts.append(cond.with_given_frames(before, blank=True))
        if cond.lowres is not None:
            parts.append(cond.lowres.to(x.dtype))
        if cond.cond_images is not None:
            cond_images = cond.cond_images[:, :, None].to(x.dtype)
            parts.insert(0, cond_images.expand(-1, -1, cond.total, -1, -1))
        if cond.coordinates is not None:
            coordinates = cond.coordinates[:, :, None].to(x.dtype)
            parts.append(coordinates.expand(len(x), -1, cond.total, -1, -1))
        cond_mask = x.new_ones(x.shape[0], 1, cond.total, *x.shape[3:])
        cond_mask[:, :, cond.noisy_slice] = 0
        return torch.cat([*parts, cond_mask], dim=1)

    def _embed_frame_times(self, time: Tensor, cond: VideoConditioning) -> Context:
        """Return the modulation of all frames and the tokens that attention may read."""
        context = self._embed_time(time, cond)
        frames = None if cond.time_deltas is None else Frames(cond.total, cond.time_deltas, cond.independent)
        return replace(context, emb=context.emb.repeat_interleave(cond.total, dim=0), frames=frames)
