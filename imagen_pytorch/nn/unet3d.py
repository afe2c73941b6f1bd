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
from .temporal import VideoGeometry
from .unet import Unet


@dataclass(frozen=True)
class VideoConditioning(Conditioning):
    """What a video network knows besides the noisy clip; ``m`` frames are all of them, given ones and noisy ones.

    Attributes:
        preceding, following: given frames before and behind the noisy ones, at working size.
        fixed: number of noisy frames.
        gaps: seconds from each frame (row) to each other (column), in the order of time: ``(b, m, m)``, or
            ``(1, m, m)`` if all clips have the same; None if frames are independent pictures.
        order: ``(b, m)`` or ``(1, m)``, which frame comes when, counted as they were given; None if they came in order.
        apart: ``(b,)``, the clips whose frames are independent pictures; None if there are none, or only such.
    """

    preceding: Tensor | None = None
    following: Tensor | None = None
    fixed: int = 1
    gaps: Tensor | None = None
    order: Tensor | None = None
    apart: Tensor | None = None

    @property
    def slots(self) -> slice:
        """Where the noisy frames are among all of them, counted as they were given."""
        first = 0 if self.preceding is None else self.preceding.shape[2]
        return slice(first, first + self.fixed)

    @property
    def total(self) -> int:
        """The number of all frames."""
        return self.slots.stop + (0 if self.following is None else self.following.shape[2])

    def joined(self, x: Float[Tensor, "b c f h w"], blank: bool = False) -> Float[Tensor, "b c m h w"]:
        """Frames that belong to the noisy ones between the given ones, or between zeros."""
        around = [None if part is None else part.to(x.dtype) for part in (self.preceding, self.following)]
        before, behind = [torch.zeros_like(part) if blank and part is not None else part for part in around]
        return torch.cat([part for part in (before, x, behind) if part is not None], dim=2)

    def by_time(self, x: Tensor) -> Tensor:
        """A clip ``(b, c, m, h, w)`` as a batch of frames ``(b m) c h w`` in the order of time."""
        if self.order is not None:
            x = x.gather(2, _along_frames(self.order, x))
        return x.transpose(1, 2).flatten(0, 1)

    def as_given(self, maps: Tensor, batch: int) -> Tensor:
        """Back from a batch of frames to the noisy frames of clips ``(b, c, f, h, w)``."""
        clips = maps.unflatten(0, (batch, -1)).transpose(1, 2)
        if self.order is not None:
            clips = clips.gather(2, _along_frames(self.order.argsort(dim=1), clips))
        return clips[:, :, self.slots]


def _along_frames(order: Tensor, clips: Tensor) -> Tensor:
    """An order of frames as ``gather`` wants it."""
    return order[:, None, :, None, None].expand(clips.shape[0], clips.shape[1], -1, *clips.shape[3:])


def _numbers(values: Tensor | float) -> list[float]:
    """Numbers that can be looked at without waiting for an accelerator."""
    if not isinstance(values, Tensor):
        return [values]
    return values.flatten().tolist() if values.device.type == "cpu" else []


def gaps_between(
    times: Float[Tensor, "b m"], rising: bool = False
) -> tuple[Float[Tensor, "b m m"], Int[Tensor, "b m"] | None]:
    """Seconds between all pairs of frames in the order of time, and that order if the frames did not come in it.

    To a microsecond, so that a steady rate gives one number per distance whatever its rounding.

    Args:
        times: seconds.
        rising: whether it is known that the frames come in the order of time; then no number is looked at.
    """
    order = None
    if not rising and bool((times.diff(dim=1) < 0).any()):
        order = times.argsort(dim=1, stable=True)
        times = times.gather(1, order)
    gaps = times[:, None, :] - times[:, :, None]
    return ((gaps * 1e6).round() / 1e6).float(), order


class Unet3D(Unet):
    """A U-Net for clips of any number of frames, height and width. All of its arguments are those of `Unet`, and:

    Every layer looks at one frame at a time but these: a convolution over frames behind those of the residual blocks,
    and, behind the first convolution, on every level and in the middle, attention between the frames of each pixel.
    They start as identities, so that a new video network treats frames like pictures, and what it learned of pictures
    stays.

    Args:
        time_rel_pos_bias_depth: layers of the network that turns the time between two frames into an attention bias.
        time_causal_attn: frames see only themselves and earlier ones.
        layer_temporal_attns: per-level, attention between frames; the first entry counts for the first convolution too.
        temporal_strides: per-level, how many frames become one in that level and those below. Where it begins with the
            first level of a causal network, ``init_conv_to_final_conv_residual`` is on by default.
        ff_time_token_shift: feed-forwards move half of their features to the next frame.
        kwargs: of `Unet`; ``layer_attns``, attention within a frame, is off unless asked for.

    Raises:
        ValueError: as `Unet`.
    """

    defaults = {"layer_attns": False}
    is_video = True
    _marks = 1

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
        if time_causal_attn and first > 1:  # no map of full rate would show the frames between to themselves
            kwargs = {"init_conv_to_final_conv_residual": True, **kwargs}
        self.geometry = VideoGeometry(
            causal=time_causal_attn,
            strides=temporal_strides,
            attends=layer_temporal_attns,
            token_shift=ff_time_token_shift,
            bias_depth=time_rel_pos_bias_depth,
        )
        super().__init__(**{**self.defaults, **kwargs})
        hidden = self.to_time_cond.out_features
        features = kwargs.get("learned_sinu_pos_emb_dim", 16)
        self.to_rate_cond = nn.Sequential(
            FourierFeatures(features), nn.Linear(features + 1, hidden), nn.SiLU(), nn.Linear(hidden, hidden)
        )
        self.null_rate_hidden = nn.Parameter(torch.zeros(1, hidden))  # so that unknown rates change nothing at first

    @property
    def is_causal(self) -> bool:
        """Whether frames see themselves and earlier ones only."""
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
        **pictures: Any,
    ) -> VideoConditioning:
        """Everything that does not depend on the noise level, once.

        Args:
            batch, size, frames: number of clips, their height and width, and of how many noisy frames they consist.
            lowres_cond_img: low-resolution clip, noised: of all frames, given ones included, or of the noisy ones (then
                given frames stand for themselves).
            cond_video_frames, post_cond_video_frames: given frames before and behind the noisy ones, as the network
                takes these: scaled to about unit variance. They are marked by a channel of their own.
            frame_times: seconds of all frames, given ones included, in the order preceding, noisy, following. They need
                not rise: a given frame may lie between noisy ones.
            fps: frames per second, of all clips or of each. Without ``frame_times`` it spaces the frames.
            fps_keep: false hides the rate from the network.
            ignore_time: frames are independent pictures: of all clips or of some.
            pictures: captions, low-resolution noise level and conditioning pictures, as for `Unet.condition`.

        Raises:
            ValueError: as `Unet.condition`; numbers of frames that do not fit each other or ``temporal_strides``; given
                frames behind the noisy ones in a causal network.
        """
        image = super().condition(batch=batch, size=size, lowres_cond_img=lowres_cond_img, **pictures)
        named = {name: getattr(image, name) for name in Conditioning.__dataclass_fields__}
        preceding, following = (
            None if part is None else resize(part, size) for part in (cond_video_frames, post_cond_video_frames)
        )
        told = VideoConditioning(**named, preceding=preceding, following=following, fixed=frames)
        self._check_given(told, batch)
        told = replace(told, lowres=self._lowres(told))
        if isinstance(ignore_time, bool) and ignore_time:
            return told
        apart = None if isinstance(ignore_time, bool) else ignore_time
        times = self._times(frame_times, fps, told, batch)
        self.check_frames(times, told.slots, apart)
        gaps, order = gaps_between(times, rising=frame_times is None)
        device = self.null_rate_hidden.device
        rate = self._rate(fps, fps_keep, batch)
        rate = rate if apart is None else rate.masked_fill(apart[:, None], 0)
        return replace(
            told,
            hidden=rate if told.hidden is None else told.hidden + rate,
            gaps=gaps.to(device),
            order=None if order is None else order.to(device),
            apart=apart,
        )

    def _check_given(self, told: VideoConditioning, batch: int) -> None:
        for name, part in (("cond_video_frames", told.preceding), ("post_cond_video_frames", told.following)):
            if part is not None and (part.ndim != 5 or part.shape[:2] != (batch, self.channels)):
                fits = f"({batch}, {self.channels}, frames, height, width)"
                raise ValueError(f"{name} must be {fits}, got {tuple(part.shape)}")

    def _lowres(self, told: VideoConditioning) -> Tensor | None:
        lowres = told.lowres
        if lowres is None or lowres.shape[2] == told.total:
            return lowres
        if lowres.shape[2] != told.fixed:
            raise ValueError(
                f"lowres_cond_img must have {told.total} frames (all of them) or {told.fixed} (the noisy ones), got "
                f"{lowres.shape[2]}"
            )
        return told.joined(lowres)

    def check_frames(self, times: Float[Tensor, "b m"], slots: slice, apart: Tensor | None = None) -> None:
        """Refuse frames that the network cannot see together.

        Args:
            times: seconds of all frames in the order preceding, noisy, following.
            slots: which of them are the noisy ones.
            apart: ``(b,)``, true for clips whose frames are independent images.

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
        if divisor > 1 and apart is not None:
            raise ValueError("with temporal_strides, ignore_time is true or false for all clips of a batch")
        known = torch.cat([times[:, : slots.start], times[:, slots.stop :]], dim=1)
        # a network that is compiled or exported looks at no number
        looks = self.geometry.causal and known.shape[1] > 0 and not torch.compiler.is_compiling()
        if looks and bool((known.amax(1) > times[:, slots].amin(1)).any()):
            raise ValueError(
                "this network is causal (time_causal_attn=True): its frames cannot see given ones that follow them "
                "(post_cond_video_frames, or later frame_times); build it with time_causal_attn=False"
            )

    def _times(
        self, given: Tensor | None, fps: Tensor | float | None, told: VideoConditioning, batch: int
    ) -> Float[Tensor, "b m"]:
        """Seconds of all frames, on the CPU, where double precision always exists.

        Raises:
            ValueError: another number of times than frames; times that are not finite; a rate that is not positive.
        """
        slots, total = told.slots, told.total
        looks = fps is not None and not torch.compiler.is_compiling()
        if looks and not all(0 < rate < math.inf for rate in _numbers(fps)):
            raise ValueError(f"fps must be positive numbers, got {fps}")
        if given is None:
            times = usual_times(total, USUAL_FPS if fps is None else fps, first=-slots.start)
            # a network that is compiled or exported looks at no number
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
        """Answer for a noisy clip.

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
        named = {**conditions, "text_keep": self._kept(x, text_keep, cond_drop_prob)}
        if conditions.get("ignore_time") is False:
            del named["ignore_time"]
        told = self._settled(conditioning, named, batch=x.shape[0], size=tuple(x.shape[-2:]), frames=x.shape[2])
        stacked = told.by_time(self._stack(x, self_cond, told))
        lowres = None if told.lowres is None else told.by_time(told.lowres)
        maps, inner = self._answer(stacked, lowres, self._look_at_frames(time, told), inner)
        answer = told.as_given(maps, x.shape[0])
        return (answer, inner) if return_inner else answer

    def _stack(self, x: Tensor, self_cond: Tensor | None, told: VideoConditioning) -> Tensor:  # type: ignore[override]
        """Of every frame, all that the first convolution sees; what belongs to a clip, for each frame."""
        parts = [told.joined(x)]
        if self.self_cond:
            parts.append(told.joined(torch.zeros_like(x) if self_cond is None else self_cond.to(x.dtype), blank=True))
        if told.lowres is not None:
            parts.append(told.lowres.to(x.dtype))
        if told.pictures is not None:
            pictures = told.pictures[:, :, None].to(x.dtype)
            parts.insert(0, pictures.expand(-1, -1, told.total, -1, -1))
        if told.coordinates is not None:
            coordinates = told.coordinates[:, :, None].to(x.dtype)
            parts.append(coordinates.expand(len(x), -1, told.total, -1, -1))
        marks = x.new_ones(x.shape[0], 1, told.total, *x.shape[3:])
        marks[:, :, told.slots] = 0
        return torch.cat([*parts, marks], dim=1)

    def _look_at_frames(self, time: Tensor, told: VideoConditioning) -> Context:
        """What modulates all frames and what attention may read."""
        context = self._look(time, told)
        frames = None if told.gaps is None else Frames(told.total, told.gaps, told.apart)
        return replace(context, hidden=context.hidden.repeat_interleave(told.total, dim=0), frames=frames)
