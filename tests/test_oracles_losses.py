"""Losses whose value is known: Gaussian data and the exact denoiser in the place of the network."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from imagen_pytorch.diffusion.losses import NOISE_LEVELS, WEIGHTINGS
from imagen_pytorch.diffusion.objectives import OBJECTIVES
from imagen_pytorch.diffusion.process import DiffusionProcess
from imagen_pytorch.diffusion.samplers import SAMPLERS
from imagen_pytorch.diffusion.schedules import SCHEDULES, Cosine, Flow, Karras
from imagen_pytorch.testing import IsotropicGaussian, as_network

STD = 0.5
DRAWS = 200_000


def process(objective="noise", schedule=None, weighting="plain", noise_levels="uniform", **options):
    return DiffusionProcess(
        Cosine() if schedule is None else schedule,
        OBJECTIVES[objective](),
        NOISE_LEVELS[noise_levels](),
        WEIGHTINGS[weighting](),
        SAMPLERS["ddim"](),
        **options,
    )


def draws(std=STD, seed=0):
    x0, noise = torch.randn(2, DRAWS // 100, 100, generator=torch.Generator().manual_seed(seed))
    return std * x0, noise


def mean_loss(model, net, log_snr, x0, noise, **options):
    """The mean loss at one level, and its standard error."""
    t = model.schedule.inverse(torch.tensor(log_snr, dtype=torch.float64)).expand(len(x0))
    losses = model.loss(net, x0, t, noise, **options)
    return float(losses.mean()), float(losses.std()) / math.sqrt(len(losses))


def expected_loss(name, alpha, sigma, std=STD):
    """``E |target - best answer|^2`` in closed form."""
    total = alpha**2 * std**2 + sigma**2
    of_x0 = std**2 * sigma**2 / total
    factors = {
        "x_start": 1.0,
        "noise": alpha**2 / sigma**2,
        "v": (alpha**2 + sigma**2) ** 2 / sigma**2,
        "flow": (alpha + sigma) ** 2 / sigma**2,
        "edm": total / (sigma * std) ** 2,
    }
    return of_x0 * factors[name] if name in factors else None


@pytest.mark.parametrize("self_condition", [False, True])
@pytest.mark.parametrize("schedule", [Cosine(), Karras(), Flow()], ids=lambda schedule: schedule.family)
@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_loss_of_the_best_network_is_the_irreducible_one(name, schedule, self_condition):
    model = process(name, schedule)
    net = as_network(IsotropicGaussian(0.0, STD), model)
    x0, noise = draws()
    for log_snr in (-3.0, 0.0, 4.0):
        found, error = mean_loss(model, net, log_snr, x0, noise, self_condition=self_condition)
        alpha, sigma = (float(part) for part in schedule.level(torch.tensor(log_snr, dtype=torch.float64)))
        c_out = float(model.objective.coefficients(schedule.level(torch.tensor(log_snr))).c_out)
        of_x0 = STD**2 * sigma**2 / (alpha**2 * STD**2 + sigma**2)
        assert abs(found - of_x0 / c_out**2) < 3 * error
        closed = expected_loss(name, alpha, sigma)
        assert closed is None or closed == pytest.approx(of_x0 / c_out**2, rel=1e-5)


@pytest.mark.parametrize("name, value", [("x_start", 0.2), ("noise", 0.2), ("v", 0.4)])
def test_irreducible_losses_at_equal_signal_and_noise(name, value):
    assert expected_loss(name, math.sqrt(0.5), math.sqrt(0.5)) == pytest.approx(value)


@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_self_conditioning_gives_the_estimate_and_leaves_the_target_alone(name):
    model = process(name)
    oracle = as_network(IsotropicGaussian(0.0, STD), model)
    x0, noise = (part[:4] for part in draws())
    t = torch.tensor([0.1, 0.4, 0.7, 0.95])
    seen = []

    def net(x, c_noise, before):
        seen.append(before)
        return oracle(x, c_noise, before)

    with_it = model.loss(net, x0, t, noise, self_condition=True)
    assert seen[0] is None and not seen[1].requires_grad
    level = model.level(t, x0)
    expected = IsotropicGaussian(0.0, STD)(model.add_noise(x0, level, noise), level, None)
    torch.testing.assert_close(seen[1], expected.float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(with_it, model.loss(oracle, x0, t, noise))


def edm(std_of_model=STD):
    return replace(process("edm", Karras(), "edm", "log_normal"), objective=OBJECTIVES["edm"](sigma_data=std_of_model))


@pytest.mark.parametrize("sigma", [0.002, 0.1, 0.5, 2.0, 80.0])
def test_edm_gives_unit_variance_in_and_out_and_a_loss_of_one(sigma):
    model = edm()
    level = model.schedule(torch.tensor([sigma], dtype=torch.float64))
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    parts = model.objective.coefficients(level)
    assert float(parts.c_in**2 * (STD**2 + sigma**2)) == pytest.approx(1, abs=1e-12)
    of_x0, of_noise = (model.objective.target(*given, level) for given in ((one, zero), (zero, one)))
    assert float((of_x0 * STD) ** 2 + of_noise**2) == pytest.approx(1, abs=1e-12)
    x0, noise = draws()
    for net in (lambda x, c_noise, before: torch.zeros_like(x), as_network(IsotropicGaussian(0.0, STD), model)):
        found, error = mean_loss(model, net, -2 * math.log(sigma), x0, noise)
        assert found == pytest.approx(1.0, abs=0.02) and error < 0.01


@pytest.mark.parametrize("sigma, value", [(0.1, 1.013), (2.0, 1.314)])
def test_edm_loss_of_zero_shows_data_whose_spread_is_not_sigma_data(sigma, value):
    x0, noise = draws()
    uniform = 2 * torch.rand(x0.shape, generator=torch.Generator().manual_seed(1)) - 1
    found, _ = mean_loss(edm(), lambda x, c_noise, before: torch.zeros_like(x), -2 * math.log(sigma), uniform, noise)
    assert found == pytest.approx(value, abs=0.02)


# -- the weight that a setting implies on the noise error, over log-SNR ------------------------------------------------


def implied_weight(model, log_snr):
    """``W`` with ``E loss = integral of W(lam) |noise error|**2 d lam``, by the process's own parts."""
    log_snr = log_snr.clone().requires_grad_()
    t = model.schedule.inverse(log_snr)
    (speed,) = torch.autograd.grad(t.sum(), log_snr)
    density = {"uniform": torch.ones_like(t), "log_normal": log_normal_density(t.detach())}[model_law(model)]
    level = model.schedule.level(log_snr.detach())
    c_out = model.objective.coefficients(level).c_out
    to_noise = level.sigma / level.alpha / c_out  # prediction error per noise error
    return density * speed.abs() * model.weighting.prediction_weight(level, c_out) * to_noise.square()


def model_law(model):
    return {NOISE_LEVELS[name]: name for name in NOISE_LEVELS.names()}[type(model.noise_levels)]


def log_normal_density(sigma):
    return torch.exp(-(((sigma.log() + 1.2) / 1.2) ** 2) / 2) / (1.2 * math.sqrt(2 * math.pi)) / sigma


def normal(x, mean, std):
    return torch.exp(-(((x - mean) / std) ** 2) / 2) / (std * math.sqrt(2 * math.pi))


SETTINGS = {
    "cosine, noise": (lambda: process("noise", Cosine(s=0.0)), lambda lam: 1 / torch.cosh(lam / 2) / (2 * math.pi)),
    "cosine, v": (lambda: process("v", Cosine(s=0.0)), lambda lam: torch.exp(-lam / 2) / math.pi),
    "flow": (lambda: process("flow", Flow()), lambda lam: torch.exp(-lam / 2) / 2),
    "edm": (edm, lambda lam: normal(lam, 2.4, 2.4) * (torch.exp(-lam) + STD**2) / STD**2),
    "p2": (
        lambda: process("noise", Cosine(s=0.0), "p2"),
        lambda lam: (1 + lam.exp()) ** -0.5 / torch.cosh(lam / 2) / (2 * math.pi),
    ),
    "soft min-SNR": (
        lambda: process("x_start", Cosine(s=0.0), "soft_min_snr"),
        lambda lam: 5 / (lam.exp() + 5) / torch.cosh(lam / 2) / (2 * math.pi),
    ),
    "sigmoid": (
        lambda: process("v", Cosine(s=0.0), "sigmoid"),
        lambda lam: torch.sigmoid(-3 - lam) / torch.cosh(lam / 2) / (2 * math.pi),
    ),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_implied_weights_have_their_closed_forms(setting):
    build, closed = SETTINGS[setting]
    log_snr = torch.linspace(-8, 8, 65, dtype=torch.float64)
    torch.testing.assert_close(implied_weight(build(), log_snr), closed(log_snr), rtol=1e-6, atol=0)


@pytest.mark.parametrize("objective", ["noise", "x_start", "v"])
def test_min_snr_implies_the_same_weight_for_every_objective(objective):
    log_snr = torch.linspace(-8, 8, 65, dtype=torch.float64)
    found = implied_weight(process(objective, Cosine(s=0.0), "min_snr"), log_snr)
    closed = (5 * torch.exp(-log_snr)).clamp(max=1) / torch.cosh(log_snr / 2) / (2 * math.pi)
    torch.testing.assert_close(found, closed, rtol=1e-6, atol=0)


# -- half precision and the noisy end ---------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES.names())
@pytest.mark.parametrize("objective", OBJECTIVES.names())
def test_loss_is_finite_at_both_ends_in_every_precision(schedule, objective):
    place = SCHEDULES[schedule]()
    noisiest, cleanest = place.time_range()
    t = torch.tensor([noisiest, noisiest + (cleanest - noisiest) * 1e-6, cleanest])
    x0, noise = torch.rand(3, 3, 2, 2), torch.randn(3, 3, 2, 2)
    for weighting in WEIGHTINGS.names():
        model = process(objective, place, weighting)
        for dtype in (torch.float16, torch.bfloat16, torch.float32):
            losses = model.loss(lambda x, c_noise, before, d=dtype: 0.1 * x.to(d), x0.to(dtype), t, noise.to(dtype))
            assert losses.dtype == torch.float32 and torch.isfinite(losses).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_pictures_meet_coefficients_of_full_precision(dtype):
    """A log-SNR of -15 has an alpha of 5e-4 and a weight of e-15: neither may pass through half precision."""
    model = process("noise", weighting="min_snr")
    x0, noise = torch.ones(1, 8).to(dtype), torch.ones(1, 8).to(dtype)
    seen = []

    def net(x, c_noise, before):
        seen.append((x, c_noise))
        return x

    model.loss(net, x0, torch.tensor([0.9999]), noise)
    x, c_noise = seen[0]
    assert float(c_noise) == pytest.approx(-15.0, abs=1e-5)
    assert float(x[0, 0].double()) == pytest.approx(1 + math.exp(-7.5), abs=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES.names())
@pytest.mark.parametrize("objective", OBJECTIVES.names())
def test_first_estimate_of_an_empty_network_is_bounded(schedule, objective):
    place = SCHEDULES[schedule]()
    model = process(objective, place)
    level = place.level(torch.tensor(place.bounds()[0], dtype=torch.float64))
    x = level.sigma.float() * torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    x0 = model.denoiser(lambda x, c_noise, before: torch.zeros_like(x))(x, level, None)
    # alpha at a log-SNR of -20 would be e-10; the schedules hold it at -15
    assert float(x0.abs().max()) <= 6 * math.exp(7.5)


def test_an_objective_without_answer_at_pure_noise_is_refused():
    with pytest.raises(ValueError, match="Noise does not determine x0 where Flow is all noise.*predict v"):
        process("noise", Flow(clip=(-math.inf, 15.0)))
    for name in ("v", "flow", "x_start", "edm"):
        process(name, Flow(clip=(-math.inf, 15.0)))
    with pytest.raises(ValueError, match='no loss type "l3"; known: l1, l2, huber'):
        process(loss_type="l3")
