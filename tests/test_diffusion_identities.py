"""Identities in float64 that every registered schedule, objective, weighting and law of noise levels must fulfil."""

from __future__ import annotations

import math

import pytest
import torch
from jaxtyping import config

from imagen_pytorch.diffusion.losses import LOSSES, NOISE_LEVELS, WEIGHTINGS
from imagen_pytorch.diffusion.objectives import OBJECTIVES
from imagen_pytorch.diffusion.samplers import SAMPLERS, HistoryEntry, Walk, draw_noise, renoise
from imagen_pytorch.diffusion.schedules import FAMILIES, GRIDS, SCHEDULES, Cosine, Discrete, Flow, Karras, NoiseLevel
from imagen_pytorch.testing import affine_response, log_uniform_levels

LOG_SNRS = torch.linspace(-20, 20, 81, dtype=torch.float64)


@pytest.fixture
def unchecked():
    """Long runs of functions whose annotations shorter tests check."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


def close(one, other, tolerance=1e-12):
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def times(schedule, count=257):
    return torch.linspace(*schedule.time_range(), count, dtype=torch.float64)


def level_of(name):
    return FAMILIES[name](LOG_SNRS[:, None])


# -- schedules -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULES.names())
def test_log_snr_falls_with_noise_and_stays_within_bounds(name):
    schedule = SCHEDULES[name]()
    log_snr = schedule.log_snr(times(schedule))
    low, high = schedule.bounds()
    assert (log_snr.diff() >= 0).all() and float(log_snr[0]) == low and float(log_snr[-1]) == high
    assert -20 <= low < high <= 20
    inner = schedule.sampling_bounds()
    assert low <= inner[0] < inner[1] <= high


@pytest.mark.parametrize("name", SCHEDULES.names())
def test_inverse_leads_back(name):
    schedule = SCHEDULES[name]()
    low, high = schedule.bounds()
    log_snr = schedule.log_snr(times(schedule))
    close(schedule.log_snr(schedule.inverse(log_snr)), log_snr, 1e-9)
    inside = (log_snr > low) & (log_snr < high)
    t = times(schedule)[inside]
    grain = 0.5 / len(schedule.betas) if name == "discrete" else 1e-9
    assert (schedule.inverse(log_snr[inside]) - t).abs().max() <= grain * (1 + 1e-9)


@pytest.mark.parametrize("name", SCHEDULES.names())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_schedules_keep_shape_and_precision_and_their_family(name, dtype):
    schedule = SCHEDULES[name]()
    t = times(schedule, 6).to(dtype).reshape(2, 3)
    level = schedule(t)
    assert level.alpha.shape == level.sigma.shape == (2, 3) and level.alpha.dtype == dtype
    kept = {"vp": level.alpha**2 + level.sigma**2, "ve": level.alpha, "flow": level.alpha + level.sigma}
    close(kept[schedule.family], torch.ones_like(level.alpha), 1e-6 if dtype == torch.float32 else 1e-12)
    close(level.log_snr, schedule.log_snr(t), 1e-4 if dtype == torch.float32 else 1e-9)


def test_schedules_are_those_of_their_papers():
    t = torch.linspace(0.001, 0.999, 50, dtype=torch.float64)
    alpha, _ = Cosine()(t)
    close(alpha, torch.cos((t + 0.008) / 1.008 * math.pi / 2))
    linear = SCHEDULES["linear"]()(t)
    close(linear.alpha**2, torch.exp(-1e-4 - 10 * t**2))
    close(Flow()(t).sigma, t)
    close(Flow(shift=3.0)(t[:-1]).sigma, 3 * t[:-1] / (1 + 2 * t[:-1]))
    shifted = SCHEDULES["shifted_cosine"](shift=4.0)
    close(shifted(t[1:-1]).sigma_edm, 4 * Cosine()(t[1:-1]).sigma_edm)
    close(Karras()(torch.tensor([0.3], dtype=torch.float64)).sigma, torch.tensor([0.3], dtype=torch.float64))
    kept = torch.cumprod(1 - torch.tensor(Discrete().betas, dtype=torch.float64), 0)
    close(Discrete()(torch.arange(1, 1001, dtype=torch.float64) / 1000).alpha ** 2, kept)


def test_the_linear_schedule_is_the_limit_of_a_thousand_betas():
    t = torch.arange(100, 1001, 50, dtype=torch.float64) / 1000
    assert (SCHEDULES["linear"]().log_snr(t) - Discrete().log_snr(t)).abs().max() < 0.15


@pytest.mark.parametrize("grid", GRIDS.names())
@pytest.mark.parametrize("name", SCHEDULES.names())
def test_grids_fall_from_the_noisiest_level_towards_the_clean_end(name, grid):
    schedule = SCHEDULES[name]()
    levels = schedule.discretize(9, grid)
    ratios = [float(level.sigma_edm) for level in levels]
    assert ratios == sorted(ratios, reverse=True) and len(set(ratios)) == 10 and ratios[-1] == 0
    low, high = schedule.bounds()
    assert all(low - 1e-9 <= float(level.log_snr) <= high + 1e-9 for level in levels[:-1])
    assert all(level.alpha.dtype == torch.float64 and level.alpha.ndim == 0 for level in levels)


def test_user_mistakes_get_a_sentence():
    with pytest.raises(ValueError, match="need 0 < sigma_min < sigma_max, got 3 and 2"):
        Karras(sigma_min=3, sigma_max=2)
    with pytest.raises(ValueError, match="betas must be numbers between 0 and 1"):
        Discrete(betas=(0.1, 1.0))
    with pytest.raises(ValueError, match='no noise schedule "cosin".*did you mean "cosine"'):
        SCHEDULES["cosin"]


# -- objectives ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OBJECTIVES.names())
@pytest.mark.parametrize("family", FAMILIES)
def test_prediction_and_state_lead_back_to_x0(name, family):
    objective, level = OBJECTIVES[name](), level_of(family)
    x0, noise = torch.randn(2, len(LOG_SNRS), 8, dtype=torch.float64)
    x_t = level.alpha * x0 + level.sigma * noise
    parts = objective.coefficients(level)
    target = objective.target(x0, noise, level)
    # rounding is relative to what cancels
    size = (parts.c_skip * x_t).abs() + (parts.c_out * target).abs() + 1
    assert ((parts.c_skip * x_t + parts.c_out * target - x0).abs() / size).max() < 1e-12


@pytest.mark.parametrize("name", OBJECTIVES.names())
@pytest.mark.parametrize("family", FAMILIES)
def test_prediction_and_state_lead_back_to_x0_in_single_precision(name, family):
    level = NoiseLevel(*(part.float() for part in FAMILIES[family](torch.linspace(-9, 8, 64).double()[:, None])))
    objective = OBJECTIVES[name]()
    x0, noise = torch.randn(2, 64, 8)
    parts = objective.coefficients(level)
    x_t, target = level.alpha * x0 + level.sigma * noise, objective.target(x0, noise, level)
    size = (parts.c_skip * x_t).abs() + (parts.c_out * target).abs() + 1
    assert ((parts.c_skip * x_t + parts.c_out * target - x0).abs() / size).max() < 1e-5


def test_targets_are_those_of_their_papers():
    x0, noise = torch.randn(2, len(LOG_SNRS), 4, dtype=torch.float64)
    level = level_of("vp")
    assert OBJECTIVES["noise"]().target(x0, noise, level) is noise
    assert OBJECTIVES["x_start"]().target(x0, noise, level) is x0
    close(OBJECTIVES["v"]().target(x0, noise, level), level.alpha * noise - level.sigma * x0)
    close(OBJECTIVES["flow"]().target(x0, noise, level), noise - x0)
    assert torch.equal(torch.ones_like(level.alpha), OBJECTIVES["v"]().coefficients(level).c_in.round(decimals=14))
    ve = level_of("ve")
    sigma, sd = ve.sigma, 0.5
    parts = OBJECTIVES["edm"](sigma_data=sd).coefficients(ve)
    close(parts.c_skip, sd**2 / (sigma**2 + sd**2))
    close(parts.c_out, sigma * sd / (sigma**2 + sd**2).sqrt())
    close(parts.c_in, 1 / (sigma**2 + sd**2).sqrt())
    close(parts.c_noise, sigma.log() / 4)


@pytest.mark.parametrize("family", FAMILIES)
def test_edm_is_v_prediction_on_scaled_data(family):
    level, sd = level_of(family), 0.5
    x0, noise = sd * torch.randn(len(LOG_SNRS), 4).double(), torch.randn(len(LOG_SNRS), 4).double()
    edm = OBJECTIVES["edm"](sigma_data=sd)
    scaled = FAMILIES["vp"](level.log_snr + 2 * math.log(sd))  # the noise level of data divided by sd
    x_t = level.alpha * x0 + level.sigma * noise
    close(edm.coefficients(level).c_in * x_t, scaled.alpha * x0 / sd + scaled.sigma * noise, 1e-11)
    close(edm.target(x0, noise, level) + OBJECTIVES["v"]().target(x0 / sd, noise, scaled), torch.zeros_like(x0), 1e-11)


@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_coefficients_stay_finite_in_the_noise_condition(name):
    """Pure noise and pure data reach a network as finite numbers."""
    ends = NoiseLevel(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0]))
    assert torch.isfinite(OBJECTIVES[name]().coefficients(ends).c_noise).all()


# -- weightings ------------------------------------------------------------------------------------------------------


def test_min_snr_weights_are_the_published_ones_for_every_objective():
    gamma, level = 5.0, FAMILIES["vp"](LOG_SNRS)
    snr = LOG_SNRS.exp()
    published = {
        "noise": snr.clamp(max=gamma) / snr,
        "x_start": snr.clamp(max=gamma),
        "v": snr.clamp(max=gamma) / (snr + 1),
    }
    for name, weight in published.items():
        c_out = OBJECTIVES[name]().coefficients(level).c_out
        close(WEIGHTINGS["min_snr"](gamma=gamma).prediction_weight(level, c_out), weight, 1e-9)
    close(WEIGHTINGS["soft_min_snr"](gamma=gamma).weight(level), snr * gamma / (snr + gamma), 1e-9)
    close(WEIGHTINGS["p2"](gamma=0.7, k=2.0).prediction_weight(level, level.alpha), (2 + snr) ** -0.7, 1e-9)
    c_out = OBJECTIVES["noise"]().coefficients(level).c_out
    close(WEIGHTINGS["sigmoid"](bias=-3.0).prediction_weight(level, c_out), torch.sigmoid(-3 - LOG_SNRS), 1e-9)


@pytest.mark.parametrize("sigma_data", [0.1, 0.5, 1.0])
def test_edm_weight_times_c_out_squared_is_one(sigma_data):
    level = FAMILIES["ve"](LOG_SNRS)
    c_out = OBJECTIVES["edm"](sigma_data=sigma_data).coefficients(level).c_out
    close(WEIGHTINGS["edm"](sigma_data=sigma_data).prediction_weight(level, c_out), torch.ones_like(LOG_SNRS), 1e-9)
    sigma = level.sigma
    published = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    close(WEIGHTINGS["edm"](sigma_data=sigma_data).weight(level), published, 1e-9)


@pytest.mark.parametrize("weighting", WEIGHTINGS.names())
@pytest.mark.parametrize("schedule", SCHEDULES.names())
def test_weights_are_positive_and_finite_over_every_schedule(weighting, schedule):
    level = SCHEDULES[schedule]()(times(SCHEDULES[schedule]()))
    for objective in OBJECTIVES.names():
        factor = WEIGHTINGS[weighting]().prediction_weight(level, OBJECTIVES[objective]().coefficients(level).c_out)
        assert torch.isfinite(factor).all() and (factor > 0).all()


def test_losses_are_what_their_names_say():
    error = torch.tensor([-2.0, 0.5])
    zero = torch.zeros(2)
    assert LOSSES["l1"](error, zero).tolist() == [2.0, 0.5]
    assert LOSSES["l2"](error, zero).tolist() == [4.0, 0.25]
    assert LOSSES["huber"](error, zero).tolist() == [1.5, 0.125]


# -- laws of noise levels ---------------------------------------------------------------------------------------------

LAWS = {
    "uniform": lambda t: t,
    "stratified": lambda t: t,
    "log_normal": lambda t: torch.special.ndtr((t.log() + 1.2) / 1.2),
    "logit_normal": lambda t: torch.special.ndtr(torch.logit(t)),
}


@pytest.mark.parametrize("name", NOISE_LEVELS.names())
def test_noise_levels_follow_their_law_and_their_generator(name):
    law = NOISE_LEVELS[name]()
    draws = law.draw(20_000, torch.Generator().manual_seed(0))
    again = law.draw(20_000, torch.Generator().manual_seed(0))
    assert draws.shape == (20_000,) and draws.dtype == torch.float32 and torch.equal(draws, again)
    if name in LAWS:  # Kolmogorov and Smirnov, at 1e-6
        places = LAWS[name](draws.double().sort().values)
        assert (places - (torch.arange(20_000) + 0.5) / 20_000).abs().max() < 2.7 / math.sqrt(20_000)


@pytest.mark.parametrize("law", [NOISE_LEVELS["stratified"](), NOISE_LEVELS["log_normal"](stratified=True)])
def test_stratified_draws_put_one_in_each_part_in_random_order(law):
    draws = law.draw(64, torch.Generator().manual_seed(0)).double()
    uniform = draws if isinstance(law, NOISE_LEVELS["stratified"]) else LAWS["log_normal"](draws)
    assert (uniform * 64).floor().sort().values.tolist() == list(range(64))
    assert (uniform.diff() < 0).any()


# -- the posterior and the forward process -----------------------------------------------------------------------------


def one_step(sampler, t, s, schedule):
    """Mean coefficients of x_t and x0 and the variance of one step with a constant estimate."""

    def response(constant):
        return affine_response(sampler, lambda x, level, before: torch.full_like(x, constant), schedule, [t, s])

    zero = response(0.0)
    return zero.start_gain, response(1.0).offset, zero.variance(0.0)


@pytest.mark.parametrize("schedule", [Cosine(), Karras(), Flow()], ids=lambda schedule: schedule.family)
def test_the_ancestral_step_is_the_posterior(schedule, unchecked):
    for low, high in ((-6.0, -5.5), (-1.0, 1.0), (2.0, 9.0)):
        t, s = (schedule.level(torch.tensor(value, dtype=torch.float64)) for value in (low, high))
        ratio = float(t.alpha / s.alpha)
        forward = float(t.sigma**2) - ratio**2 * float(s.sigma**2)  # variance of q(t | s)
        variance = 1 / (ratio**2 / forward + 1 / float(s.sigma**2))  # precisions add up
        of_state, of_x0 = variance * ratio / forward, variance * float(s.alpha) / float(s.sigma**2)
        for name in ("ddpm", "dpmpp_2m_sde", "dpmpp_2m_sde_heun"):
            found = one_step(SAMPLERS[name](), t, s, schedule)
            assert found == pytest.approx((of_state, of_x0, variance), rel=1e-10, abs=1e-14)
        upper = forward
        for share in (0.3, 1.0):
            *_, found_variance = one_step(SAMPLERS["ddpm"](upper=share), t, s, schedule)
            assert found_variance == pytest.approx(variance ** (1 - share) * upper**share, rel=1e-10)
        assert one_step(SAMPLERS["ddpm"](eta=0.0), t, s, schedule) == pytest.approx(
            one_step(SAMPLERS["ddim"](), t, s, schedule), rel=1e-10
        )
        for eta in (0.5, 1.0):  # whatever the noise, data that is one point keep their marginal
            gain, offset, added = one_step(SAMPLERS["ddpm"](eta=eta), t, s, schedule)
            assert gain**2 * float(t.sigma**2) + added == pytest.approx(float(s.sigma**2), rel=1e-10)
            assert gain * float(t.alpha) + offset == pytest.approx(float(s.alpha), rel=1e-10)


@pytest.mark.parametrize("schedule", [Cosine(), Karras(), Flow()], ids=lambda schedule: schedule.family)
def test_renoising_keeps_the_marginal(schedule):
    for low, high in ((-6.0, -5.5), (-1.0, 1.0), (2.0, 9.0), (-9.0, math.inf)):
        t = schedule.level(torch.tensor(low, dtype=torch.float64))
        s = NoiseLevel.clean() if high == math.inf else schedule.level(torch.tensor(high, dtype=torch.float64))
        one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        gain, added = float(renoise(one, s, t, zero)), float(renoise(zero, s, t, one))
        for spread in (0.0, 0.3, 2.0):
            at_s = float(s.sigma**2 + s.alpha**2 * spread)
            assert gain**2 * at_s + added**2 == pytest.approx(float(t.sigma**2 + t.alpha**2 * spread), rel=1e-12)
        assert gain * float(s.alpha) == pytest.approx(float(t.alpha), rel=1e-12)


def test_renoised_draws_have_the_right_spread():
    generator = torch.Generator().manual_seed(0)
    z, fresh = torch.randn(2, 400_000, generator=generator)
    cosine = Cosine()
    s, t = cosine(torch.tensor(0.4, dtype=torch.float64)), cosine(torch.tensor(0.6, dtype=torch.float64))
    assert renoise(s.sigma * z, s, t, fresh).std() == pytest.approx(0.812, rel=0.01)
    three, five = (NoiseLevel(torch.ones(()), torch.tensor(value)) for value in (3.0, 5.0))
    assert renoise(three.sigma * z, three, five, fresh).std() == pytest.approx(5.0, rel=0.01)


def test_noise_comes_from_generators_or_from_a_function():
    x = torch.zeros(2, 3)
    assert torch.equal(draw_noise(x, lambda state: state + 7), x + 7)
    one, again = (draw_noise(x, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, again) and not torch.equal(one, x)
    with pytest.raises(ValueError, match="3 generators cannot serve a batch of 2"):
        draw_noise(x, [torch.Generator() for _ in range(3)])


def test_multistep_samplers_are_exact_for_polynomials_of_their_order():
    """With an estimate that is a polynomial of the half log-SNR, the exponential samplers make no error at all."""
    schedule = Karras()
    for name, degree in (("ddim", 0), ("ab2", 1), ("ab3", 2), ("pc2", 2), ("pc3", 3)):
        levels = log_uniform_levels(schedule, 2.0, 0.5, 6)

        def polynomial(x, level, before, degree=degree):
            return torch.zeros_like(x) + (level.log_snr / 2) ** degree

        sampler = SAMPLERS[name]()
        history, start = [], torch.zeros(1, 1, dtype=torch.float64)
        # enough exact past for the highest order: x solves dx/dl = D - x with x = particular polynomial + decay
        for level in levels[:3]:
            history.append(HistoryEntry(level, particular(level, degree) + 0 * start, polynomial(start, level, None)))
        x = particular(levels[3], degree) + 0 * start
        for t, s in zip(levels[3:], levels[4:], strict=False):
            step = sampler.step(Walk(polynomial, schedule, history=history), x, t, s)
            history.append(HistoryEntry(t, x if step.corrected is None else step.corrected, step.x0))
            x = step.x
        if name.startswith("pc"):  # the last state is only predicted: correct it as the next step would
            x = sampler.step(Walk(polynomial, schedule, history=history), x, s, levels[0]).corrected
        close(x, particular(s, degree) + 0 * start, 1e-11)


def particular(level, degree):
    """The polynomial solution of ``dx/dl = l**degree - x``, for l the half log-SNR."""
    half = level.log_snr / 2
    return sum((-1) ** k * math.perm(degree, k) * half ** (degree - k) for k in range(degree + 1))
