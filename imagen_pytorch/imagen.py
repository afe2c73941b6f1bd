"""The two public models: one cascade with two sets of default choices."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from .cascade.description import CASCADES, imagen_from_config, unet_from_config
from .cascade.limits import MAX_STEPS, check_each, check_flag, check_member, check_name, check_positive
from .cascade.options import SharedOptions
from .compat.elucidated import ElucidatedFormulas
from .compat.gaussian_diffusion import NoiseSchedulers
from .construction import records_construction
from .diffusion.losses import LOSSES, NOISE_LEVELS, P2, WEIGHTINGS, EDMWeight, LogNormal, MinSNR, Plain, Weighting
from .diffusion.objectives import EDM, OBJECTIVES, Objective
from .diffusion.process import DiffusionProcess
from .diffusion.samplers import SAMPLERS, EDMChurn
from .diffusion.schedules import SCHEDULES, Karras, Schedule
from .model_files import ModelFiles
from .ranges import check_number, check_whole
from .registry import Spec
from .tensors import per_stage
from .text import DEFAULT_T5_NAME, TextEncoder

__all__ = ["CASCADES", "ElucidatedImagen", "Hparams", "Imagen", "edm_process", "imagen_from_config", "padded_schedules",
           "unet_from_config"]  # fmt: skip


def _networks(unets: nn.Module | Sequence[nn.Module]) -> tuple[nn.Module, ...]:
    found = tuple(unets) if isinstance(unets, list | tuple | nn.ModuleList) else (unets,)
    if not found:
        raise ValueError("unets must hold at least one U-Net, got none")
    return found


def padded_schedules(given: Spec | Sequence[Spec], count: int) -> tuple[Spec, ...]:
    """Return the noise schedules of all stages. Missing ones are cosine for the second U-Net and linear after it.

    Raises:
        ValueError: more schedules than U-Nets.
    """
    names = tuple(given) if isinstance(given, list | tuple) else (given,)
    if len(names) > count:
        raise ValueError(f"{count} U-Nets take at most as many noise_schedules, got {len(names)}: {names}")
    rest = ("cosine", "cosine", *("linear",) * count)[len(names) : count]
    return names + rest


def _schedule(spec: Spec) -> Schedule:
    """Return a noise schedule whose times lie in [0, 1].

    Raises:
        ValueError: an unknown schedule, or one whose time is the noise level.
        TypeError: another value.
    """
    schedule: Schedule = check_member(SCHEDULES, spec, "noise_schedules")
    if schedule.time_range() != (1.0, 0.0):
        raise ValueError(
            f'noise_schedules: the times of "{SCHEDULES.name_of(schedule)}" are noise levels and not in [0, 1]; '
            "ElucidatedImagen has them"
        )
    return schedule


def _weighting(row: Mapping[str, Any]) -> Weighting:
    """Return the weight of the loss of one stage: the stated one, or that of the arguments for min-SNR and P2."""
    gamma, p2_gamma = check_positive(row["min_snr_gamma"], "min_snr_gamma"), row["p2_loss_weight_gamma"]
    p2_k = check_positive(row["p2_loss_weight_k"], "p2_loss_weight_k")
    if row["weighting"] is not None:
        if p2_gamma is not None:
            raise ValueError('give weighting or p2_loss_weight_gamma, not both; weighting="p2(gamma=0.5)" is the same')
        return check_member(WEIGHTINGS, row["weighting"], "weighting", MinSNR(gamma=gamma))
    if p2_gamma is None:
        return MinSNR(gamma=gamma) if row["min_snr_loss_weight"] else Plain()
    if not 0 <= check_number(p2_gamma, "p2_loss_weight_gamma", -math.inf, math.inf) <= 2:
        raise ValueError(f"p2_loss_weight_gamma must lie in [0, 2] (the paper uses 0.5 to 1), got {p2_gamma}")
    return P2(gamma=p2_gamma, k=p2_k)


#: arguments of `Imagen` for the process of a stage, one or one per U-Net
_OF_STAGES = (
    "noise_schedules", "noise_levels", "pred_objectives", "sampler", "timesteps", "weighting", "min_snr_loss_weight",
    "min_snr_gamma", "p2_loss_weight_gamma", "p2_loss_weight_k", "loss_space",
)  # fmt: skip


@CASCADES.register("original")
class Imagen(NoiseSchedulers, ModelFiles):
    """A cascade with the processes of Imagen: variance preserving, continuous in time (Saharia et al. 2022,
    arXiv 2205.11487; Kingma et al. 2021, arXiv 2107.00630).

    "per-unet" arguments are one value or one per U-Net. Schedules, objectives, distributions of noise levels,
    weightings, samplers and guidance methods are given by name, with parameters as ``"flow(shift=3)"`` or ``{"name":
    "flow", "shift": 3}``, or as objects.

    Args:
        unets: one network or several, lowest resolution first.
        image_sizes: size of each stage, an int or (height, width).
        text_encoder_name: hub name or folder of a T5 or any other transformers encoder, or an embedded one. None: the
            model takes only embeddings, of width ``text_embed_dim``.
        text_encoder: in place of a name, an encoder object or a function from a list of captions to embeddings
            ``(b, n, d)``, or to embeddings and a mask. Checkpoints do not hold it.
        text_embed_dim: width of caption embeddings; by default that of the encoder.
        channels: of the images.
        timesteps: per-unet number of sampling steps.
        sampler: per-unet sampler.
        self_cond: per-unet; true gives the network its own earlier estimate (Chen et al. 2022, arXiv 2208.04202). By
            default it is as the U-Net was built.
        cond_drop_prob: fraction of captions dropped in training; 0 excludes guidance.
        cond_images_drop_prob: fraction of conditioning images dropped in training; above 0 they are guided on too.
        cond_scale, guidance: per-unet guidance weight, and the guidance method; the defaults of `sample`. None means 1
            (no guidance) and "cfg".
        loss_type: "l1", "l2" or "huber".
        noise_schedules: per-unet; missing ones are cosine for U-Net 2, then linear.
        noise_levels: per-unet distribution of training times; by default uniform.
        pred_objectives: per-unet, "noise", "x_start", "v", "flow" or "edm".
        random_crop_sizes: per-unet training crop of upsamplers; the first entry is None.
        lowres_noise_schedule, lowres_sample_noise_level, per_sample_random_aug_noise_level: noise-conditioning
            augmentation of the low-resolution image: its schedule, its per-unet time when sampling, and a switch to
            draw a training level per image instead of per batch.
        lowres_max_noise_level: training draws those times from [0, this); at 1 up to pure noise, as in the paper.
        lowres_residual: per-unet scale; the stage then models (image - enlarged low-resolution image) / scale.
        condition_on_text: False for unconditional models.
        auto_normalize_img: images are given and returned in [0, 1]; False means [-1, 1].
        dynamic_thresholding, dynamic_thresholding_percentile: per-unet switch and quantile (Imagen section 2.3).
        only_train_unet_number: refuse training any other U-Net.
        temporal_downsample_factor: of a video cascade, per-unet; a stage with k keeps every k-th frame, the last all.
        resize_cond_video_frames: a stage with fewer frames uses of the given frames those that fall on its own times.
        temporal_resize_mode: from the frames of one stage to those of the next: "linear" or "nearest".
        video_frames, fps: default number of frames and frame rate of `sample`.
        fps_drop_prob: fraction of training clips whose ``fps`` is hidden from the network.
        given_frames_prob: fraction of training batches in which some frames are given and the rest is learned: with
            causal networks the first ones, else any. `sample` can then continue ``cond_video_frames``.
        resize_mode: of every resize, antialiased for "bilinear" and "bicubic".
        spectral_loss: per-unet; a loss of the error by spatial frequency, added to the plain one: ``{"table": "jpeg85",
            "weight": 1.0}`` or the name of a table, "jpeg85" (low frequencies count most), "sharp" (high ones) or
            "flat". It does not move the minimiser of ``loss_type="l2"`` (Ma et al. 2025, arXiv 2511.19365; see
            `SpectralLoss`).
        crop_coordinates: per-unet, of upsamplers: give the network x and y of every pixel in the full image, as the
            position of a crop of ``random_crop_sizes`` (Wang et al. 2023, "Patch Diffusion", arXiv 2304.12526).
            By default it is as the U-Net was built.
        augment: per-unet; flip, shift, scale and rotate training images at random, and condition the network on a
            label of these changes, which is zero in sampling and validation: ``{"probability": 0.12, "flips": True,
            "shifts": 0.125, "scales": 0.2, "rotations": 180}``, of which missing entries have these values. The
            low-resolution image and conditioning images change alike (Karras et al. 2022, arXiv 2206.00364, appendix
            F.2; see `GeometricAugmentation`).
        perceptual_loss: per-unet; a loss on early features that a frozen network computes of the estimated image, at
            low noise and for a part of the batch: ``{"features": "efficientnet-lite0", "weight": 0.1,
            "max_noise_share": 0.7, "batch_fraction": 0.25}`` or the name of the features. It is left out of validation
            losses and likelihoods, moves the minimiser away from the posterior mean, and an evaluation refuses the
            features that it used (Ma et al. 2026, "PixelGen", arXiv 2602.02493; see `PerceptualLoss`).
        min_snr_loss_weight, min_snr_gamma: per-unet min-SNR weight (Hang et al. 2023, arXiv 2303.09556).
        p2_loss_weight_gamma, p2_loss_weight_k: per-unet P2 weight in its place (Choi et al. 2022, arXiv 2204.00227).
        weighting: per-unet weight of each noise level in the loss, in place of both.
        loss_space: per-unet; measure the error in "x0", "eps", "v" or "flow", whatever the network predicts. By default
            it is measured in the prediction. Needs ``min_snr_loss_weight=False``, because a weight that is stated in x0
            space, as that of min-SNR, gives the same loss in every space (Li & He 2025, arXiv 2511.13720).

    Raises:
        ValueError: contradicting or unknown options, named in the message.
        TypeError: an object that is not a network.
    """

    kind = "original"

    @records_construction
    def __init__(
        self,
        unets: nn.Module | Sequence[nn.Module],
        *,
        image_sizes: int | Sequence[Any],
        text_encoder_name: str | None = DEFAULT_T5_NAME,
        text_encoder: TextEncoder | Callable[..., Any] | None = None,
        text_embed_dim: int | None = None,
        channels: int = 3,
        timesteps: int | Sequence[int] = 1000,
        sampler: Spec | Sequence[Spec] = "ddpm",
        self_cond: bool | Sequence[bool | None] | None = None,
        cond_drop_prob: float = 0.1,
        cond_images_drop_prob: float = 0.0,
        cond_scale: float | Sequence[float] | None = None,
        guidance: Spec | None = None,
        loss_type: str = "l2",
        noise_schedules: Spec | Sequence[Spec] = "cosine",
        noise_levels: Spec | Sequence[Spec | None] | None = None,
        pred_objectives: Spec | Sequence[Spec] = "noise",
        random_crop_sizes: int | Sequence[Any] | None = None,
        lowres_noise_schedule: Spec = "linear",
        lowres_sample_noise_level: float | Sequence[float] = 0.2,
        per_sample_random_aug_noise_level: bool = False,
        lowres_max_noise_level: float = 1.0,
        lowres_residual: float | Sequence[float | None] | None = None,
        condition_on_text: bool = True,
        auto_normalize_img: bool = True,
        dynamic_thresholding: bool | Sequence[bool] = True,
        dynamic_thresholding_percentile: float = 0.95,
        only_train_unet_number: int | None = None,
        temporal_downsample_factor: int | Sequence[int] = 1,
        resize_cond_video_frames: bool = True,
        temporal_resize_mode: str = "linear",
        video_frames: int | None = None,
        fps: float = 8.0,
        fps_drop_prob: float = 0.1,
        given_frames_prob: float = 0.0,
        resize_mode: str = "bilinear",
        spectral_loss: str | Mapping[str, Any] | Sequence[Any] | None = None,
        crop_coordinates: bool | Sequence[bool | None] | None = None,
        augment: Mapping[str, Any] | Sequence[Any] | None = None,
        perceptual_loss: str | Mapping[str, Any] | Sequence[Any] | None = None,
        min_snr_loss_weight: bool | Sequence[bool] = True,
        min_snr_gamma: float | Sequence[float] = 5.0,
        p2_loss_weight_gamma: float | Sequence[float | None] | None = None,
        p2_loss_weight_k: float | Sequence[float] = 1.0,
        weighting: Spec | Sequence[Spec | None] | None = None,
        loss_space: Spec | Sequence[Spec | None] | None = None,
    ) -> None:
        arguments = dict(locals())
        networks = _networks(unets)
        count = len(networks)
        check_each(timesteps, count, "timesteps", check_whole, 1, MAX_STEPS)
        check_each(min_snr_loss_weight, count, "min_snr_loss_weight", check_flag)
        check_name(loss_type, "loss_type")
        arguments["noise_schedules"] = padded_schedules(noise_schedules, count)
        columns = {name: per_stage(arguments[name], count, name) for name in _OF_STAGES}
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        processes = [_process(row, loss_type) for row in rows]
        super().__init__(networks, processes, SharedOptions.take(arguments))
        self.loss_type, self.loss_fn = loss_type, LOSSES[loss_type]
        self.pred_objectives = columns["pred_objectives"]
        self.min_snr_gamma = columns["min_snr_gamma"]


def _process(row: Mapping[str, Any], loss_type: str) -> DiffusionProcess:
    """Return the process of one stage of `Imagen` from its arguments."""
    weighting, space = _weighting(row), row["loss_space"]
    drawn = "uniform" if row["noise_levels"] is None else row["noise_levels"]
    return DiffusionProcess(
        schedule=_schedule(row["noise_schedules"]),
        objective=check_member(OBJECTIVES, row["pred_objectives"], "pred_objectives"),
        noise_levels=check_member(NOISE_LEVELS, drawn, "noise_levels"),
        weighting=weighting,
        sampler=check_member(SAMPLERS, row["sampler"], "sampler"),
        loss_type=loss_type,
        steps=row["timesteps"],
        loss_space=None if space is None else _loss_space(space, weighting),
    )


def _loss_space(spec: Spec, weighting: Weighting) -> Objective:
    """Return the objective in whose prediction the error is measured.

    Raises:
        ValueError: combined with a weight that is stated in x0 space, or an unknown objective.
        TypeError: another value.
    """
    space: Objective = check_member(OBJECTIVES, spec, "loss_space")
    if type(weighting).prediction_weight is Weighting.prediction_weight:
        name = "min-SNR weight" if isinstance(weighting, MinSNR) else f"weighting {WEIGHTINGS.name_of(weighting)}"
        raise ValueError(
            f'loss_space="{OBJECTIVES.name_of(space)}" has no effect on the {name}, which is stated in x0 space: set '
            'min_snr_loss_weight=False, or a weighting that is not, such as "plain"'
        )
    return space


class Hparams(NamedTuple):
    """The EDM numbers of one stage (Karras et al. 2022, arXiv 2206.00364, table 1)."""

    num_sample_steps: int
    sigma_min: float
    sigma_max: float
    sigma_data: float
    rho: float
    P_mean: float
    P_std: float
    S_churn: float
    S_tmin: float
    S_tmax: float
    S_noise: float


#: ranges of these numbers, within which all noise levels and weights are finite in single precision
_RANGES = {
    "sigma_min": (1e-6, 1e5),
    "sigma_max": (1e-6, 1e5),
    "sigma_data": (1e-4, 1e4),
    "rho": (0.5, 100.0),
    "P_mean": (-10.0, 10.0),
    "P_std": (0.0, 5.0),
    "S_churn": (0.0, 1e6),
    "S_tmin": (0.0, math.inf),
    "S_tmax": (0.0, math.inf),
    "S_noise": (0.0, 10.0),
}


@CASCADES.register("elucidated")
class ElucidatedImagen(ElucidatedFormulas, NoiseSchedulers, ModelFiles):
    """A cascade with the process of EDM (Karras et al. 2022, arXiv 2206.00364).

    The arguments that it shares with `Imagen` mean the same. Its own are all per-unet.

    Args:
        num_sample_steps: number of sampling steps.
        sigma_min, sigma_max, rho: the grid of noise levels (eq. 5).
        sigma_data: standard deviation of the data in [-1, 1] (of the residual where lowres_residual is set).
        P_mean, P_std: training levels, log sigma ~ N(P_mean, P_std**2).
        S_churn, S_tmin, S_tmax, S_noise: stochasticity of the sampler "edm" (algorithm 2), also when `sample` requests
            it.
        sampler: the sampler.
        noise_levels, weighting: distribution of training levels and weight of each in the loss, in place of EDM's.
            Parameters that are not stated are those of this model.

    Raises:
        ValueError: contradicting or unknown options, named in the message.
        TypeError: an object that is not a network.
    """

    kind = "elucidated"

    @records_construction
    def __init__(
        self,
        unets: nn.Module | Sequence[nn.Module],
        *,
        image_sizes: int | Sequence[Any],
        text_encoder_name: str | None = DEFAULT_T5_NAME,
        text_encoder: TextEncoder | Callable[..., Any] | None = None,
        text_embed_dim: int | None = None,
        channels: int = 3,
        self_cond: bool | Sequence[bool | None] | None = None,
        cond_drop_prob: float = 0.1,
        cond_images_drop_prob: float = 0.0,
        cond_scale: float | Sequence[float] | None = None,
        guidance: Spec | None = None,
        random_crop_sizes: int | Sequence[Any] | None = None,
        lowres_noise_schedule: Spec = "linear",
        lowres_sample_noise_level: float | Sequence[float] = 0.2,
        per_sample_random_aug_noise_level: bool = False,
        lowres_max_noise_level: float = 1.0,
        lowres_residual: float | Sequence[float | None] | None = None,
        condition_on_text: bool = True,
        auto_normalize_img: bool = True,
        dynamic_thresholding: bool | Sequence[bool] = True,
        dynamic_thresholding_percentile: float = 0.95,
        only_train_unet_number: int | None = None,
        temporal_downsample_factor: int | Sequence[int] = 1,
        resize_cond_video_frames: bool = True,
        temporal_resize_mode: str = "linear",
        video_frames: int | None = None,
        fps: float = 8.0,
        fps_drop_prob: float = 0.1,
        given_frames_prob: float = 0.0,
        resize_mode: str = "bilinear",
        spectral_loss: str | Mapping[str, Any] | Sequence[Any] | None = None,
        crop_coordinates: bool | Sequence[bool | None] | None = None,
        augment: Mapping[str, Any] | Sequence[Any] | None = None,
        perceptual_loss: str | Mapping[str, Any] | Sequence[Any] | None = None,
        sampler: Spec | Sequence[Spec] = "edm",
        num_sample_steps: int | Sequence[int] = 32,
        sigma_min: float | Sequence[float] = 0.002,
        sigma_max: float | Sequence[float] = 80.0,
        sigma_data: float | Sequence[float] = 0.5,
        rho: float | Sequence[float] = 7.0,
        P_mean: float | Sequence[float] = -1.2,
        P_std: float | Sequence[float] = 1.2,
        S_churn: float | Sequence[float] = 80.0,
        S_tmin: float | Sequence[float] = 0.05,
        S_tmax: float | Sequence[float] = 50.0,
        S_noise: float | Sequence[float] = 1.003,
        noise_levels: Spec | Sequence[Spec | None] | None = None,
        weighting: Spec | Sequence[Spec | None] | None = None,
    ) -> None:
        arguments = dict(locals())
        networks = _networks(unets)
        count = len(networks)
        for name, (low, high) in _RANGES.items():
            check_each(arguments[name], count, name, check_number, low, high, optional=False)
        check_each(num_sample_steps, count, "num_sample_steps", check_whole, 1, MAX_STEPS)
        table = [per_stage(arguments[name], count, name) for name in Hparams._fields]
        hparams = [Hparams(*row) for row in zip(*table, strict=True)]
        chosen = [per_stage(arguments[name], count, name) for name in ("sampler", "noise_levels", "weighting")]
        processes = [edm_process(*row) for row in zip(hparams, *chosen, strict=True)]
        super().__init__(networks, processes, SharedOptions.take(arguments))
        self.hparams = hparams


def edm_process(
    hparams: Hparams, sampler: Spec = "edm", noise_levels: Spec | None = None, weighting: Spec | None = None
) -> DiffusionProcess:
    """Return the EDM process with the given numbers. Those of a member count where it does not state others."""
    churn = EDMChurn(**{name: getattr(hparams, name) for name in ("S_churn", "S_tmin", "S_tmax", "S_noise")})
    drawn, weight = LogNormal(hparams.P_mean, hparams.P_std), EDMWeight(hparams.sigma_data)
    return DiffusionProcess(
        schedule=Karras(hparams.sigma_min, hparams.sigma_max, hparams.rho),
        objective=EDM(hparams.sigma_data),
        noise_levels=check_member(NOISE_LEVELS, drawn if noise_levels is None else noise_levels, "noise_levels", drawn),
        weighting=check_member(WEIGHTINGS, weight if weighting is None else weighting, "weighting", weight),
        sampler=check_member(SAMPLERS, sampler, "sampler", churn),
        prepared=(churn,),
        steps=hparams.num_sample_steps,
    )
