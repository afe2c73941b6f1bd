"""What is predicted and where its error is measured are two choices: nine cells, each with a known weight."""

from __future__ import annotations

import math

import pytest
import torch
from cascade_toys import cascade, pictures, text

from imagen_pytorch.diffusion.losses import NOISE_LEVELS, WEIGHTINGS
from imagen_pytorch.diffusion.objectives import OBJECTIVES
from imagen_pytorch.diffusion.process import MAX_ERROR_SCALE, DiffusionProcess
from imagen_pytorch.diffusion.samplers import SAMPLERS
from imagen_pytorch.diffusion.schedules import Cosine, Flow
from imagen_pytorch.testing import IsotropicGaussian, as_network

CELLS = ("x0", "eps", "v", "flow")


def process(objective, space=None, schedule=None, weighting="plain", **options):
    parts = (OBJECTIVES[objective](), NOISE_LEVELS["uniform"](), WEIGHTINGS[weighting](), SAMPLERS["ddim"]())
    space = None if space is None else OBJECTIVES[space]()
    return DiffusionProcess(schedule or Cosine(s=0.0), *parts, loss_space=space, **options)


def implied_weight(model, log_snr):
    """``W`` with ``E loss = integral of W(log-SNR) |noise error|**2``, for uniform times."""
    log_snr = log_snr.clone().requires_grad_()
    (speed,) = torch.autograd.grad(model.schedule.inverse(log_snr).sum(), log_snr)
    level = model.schedule.level(log_snr.detach())
    scale, factor = model.error_scale(level)
    to_noise = level.sigma / level.alpha / model.objective.coefficients(level).c_out  # from noise error to prediction
    return speed.abs() * factor * (scale * to_noise).square()


def closed_form(space, log_snr):
    """The weights of methods on the cosine schedule: that of noise, times the factor from there to the space."""
    alpha, sigma = torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()
    factors = {"eps": 1.0, "x0": sigma / alpha, "v": 1 / alpha, "flow": (alpha + sigma) / alpha}
    return torch.as_tensor(factors[space]) ** 2 / torch.cosh(log_snr / 2) / (2 * math.pi)


@pytest.mark.parametrize("space", CELLS)
@pytest.mark.parametrize("objective", CELLS)
def test_the_implied_weight_depends_on_the_loss_space_alone(objective, space):
    log_snr = torch.linspace(-5, 5, 41, dtype=torch.float64)  # where no factor is held
    found = implied_weight(process(objective, space), log_snr)
    torch.testing.assert_close(found, closed_form(space, log_snr), rtol=1e-6, atol=0)
    if space in ("v", "eps"):
        known = {"v": torch.exp(-log_snr / 2) / math.pi, "eps": 1 / torch.cosh(log_snr / 2) / (2 * math.pi)}[space]
        torch.testing.assert_close(found, known, rtol=1e-6, atol=0)


@pytest.mark.parametrize("objective", CELLS)
def test_the_own_space_is_no_change(objective):
    x0, noise = torch.randn(2, 4, 3, 4, 4)
    t = torch.tensor([0.1, 0.4, 0.7, 0.95])
    losses = [process(objective, space).loss(lambda x, c, b: 0.3 * x, x0, t, noise) for space in (None, objective)]
    assert torch.equal(*losses)


@pytest.mark.parametrize("weighting", sorted(set(WEIGHTINGS.names()) - {"plain", "p2"}))
def test_a_weight_stated_in_x0_space_gives_the_same_loss_in_every_space(weighting):
    x0, noise = torch.randn(2, 4, 3, 4, 4)
    t = torch.tensor([0.02, 0.4, 0.7, 0.98])
    for objective in CELLS:
        losses = [process(objective, space, weighting=weighting).loss(lambda x, c, b: 0.3 * x, x0, t, noise)
                  for space in (None, *CELLS)]  # fmt: skip
        for loss in losses[1:]:
            torch.testing.assert_close(loss, losses[0], rtol=1e-4, atol=0)


@pytest.mark.parametrize("loss_type", ["l1", "l2", "huber"])
def test_the_loss_is_that_of_a_network_that_predicts_what_is_measured(loss_type):
    """Of one estimate of x0, whatever the prediction that stands for it."""
    x0, noise, estimate = torch.randn(3, 3, 3, 4, 4)
    t = torch.tensor([0.2, 0.5, 0.8])

    def loss(objective, space):
        model = process(objective, space, loss_type=loss_type)
        level = model.level(t, x0)
        parts = model.objective.coefficients(level)
        answer = ((estimate - parts.c_skip * model.add_noise(x0, level, noise)) / parts.c_out).float()
        return model.loss(lambda x, c_noise, before: answer, x0, t, noise)

    for space in CELLS:
        for objective in CELLS:
            torch.testing.assert_close(loss(objective, space), loss(space, None), rtol=1e-4, atol=1e-5)


def test_an_image_predicted_and_measured_as_velocity_is_that_of_jit():
    """``1 / max(t, 0.05)**2`` on the straight path, and the irreducible loss of the exact network."""
    model = process("x0", "flow", Flow())
    t = torch.tensor([0.01, 0.04, 0.05, 0.2, 0.9], dtype=torch.float64)
    scale, factor = model.error_scale(model.schedule(t))
    torch.testing.assert_close(scale, 1 / t.clamp(min=0.05), rtol=1e-6, atol=0)
    assert torch.equal(factor, torch.ones_like(t)) and scale.max() == MAX_ERROR_SCALE
    x0, noise = torch.randn(2, 4000, 100)
    t = torch.full((4000,), 0.3)
    found = model.loss(as_network(IsotropicGaussian(0.0, 0.5), model), 0.5 * x0, t, noise).mean()
    alpha, sigma, std = 0.7, 0.3, 0.5
    expected = (alpha + sigma) ** 2 * std**2 / (alpha**2 * std**2 + sigma**2)
    assert float(found) == pytest.approx(expected, rel=0.01)


def test_a_model_takes_a_space_for_each_network():
    model = cascade(stages=2, loss_space=[None, "v"], pred_objectives="x0", min_snr_loss_weight=False)
    plain = cascade(stages=2, pred_objectives="x0", min_snr_loss_weight=False)
    losses = [[made(pictures(2, 16), text_embeds=text(), unet_number=number, generator=torch.Generator().manual_seed(1))
               for number in (1, 2)] for made in (model, plain)]  # fmt: skip
    assert torch.equal(losses[0][0], losses[1][0]) and not torch.equal(losses[0][1], losses[1][1])
    with pytest.raises(ValueError, match='loss_space="v" has no effect on the min-SNR weight.*min_snr_loss_weight=Fal'):
        cascade(loss_space="v")
    with pytest.raises(ValueError, match='no objective "w"'):
        cascade(loss_space="w")
    cascade(loss_space="v", p2_loss_weight_gamma=0.5)
    with pytest.raises(ValueError, match="Noise does not determine x0 where Flow is all noise"):
        process("x0", "eps", Flow(clip=(-math.inf, 15.0)))
