"""Laws of the diffusion under its earlier name: posterior, marginals, times and predictions."""

from __future__ import annotations

import pytest
import torch
from cascade_toys import cascade

import imagen_pytorch
from imagen_pytorch.imagen_pytorch import GaussianDiffusionContinuousTimes, Imagen, NullUnet, Unet

SCHEDULES = ["cosine", "linear"]


def diffusion(name="cosine", steps=10):
    return GaussianDiffusionContinuousTimes(noise_schedule=name, timesteps=steps)


def test_the_earlier_module_leads_to_the_same_classes():
    assert (Imagen, Unet, NullUnet) == (imagen_pytorch.Imagen, imagen_pytorch.Unet, imagen_pytorch.NullUnet)
    assert imagen_pytorch.imagen_pytorch.GaussianDiffusionContinuousTimes is GaussianDiffusionContinuousTimes
    with pytest.raises(ValueError, match='no noise schedule "cosin"'):
        diffusion("cosin")


@pytest.mark.parametrize("name", SCHEDULES)
def test_times_and_conditions(name):
    noise = diffusion(name, steps=4)
    assert noise.num_timesteps == 4
    torch.testing.assert_close(noise.get_times(3, 0.2, device="cpu"), torch.full((3,), 0.2))
    times = noise.sample_random_times(2000, device="cpu")
    assert times.min() >= 0 and times.max() < 1 and times.mean().item() == pytest.approx(0.5, abs=0.03)
    assert noise.get_condition(None) is None
    assert torch.equal(noise.get_condition(times), noise.log_snr(times))
    pairs = noise.get_sampling_timesteps(2, device="cpu")
    assert [tuple(t.tolist()) for t, _ in pairs] == [(1.0,) * 2, (0.75,) * 2, (0.5,) * 2, (0.25,) * 2]
    assert [tuple(s.tolist()) for _, s in pairs] == [(0.75,) * 2, (0.5,) * 2, (0.25,) * 2, (0.0,) * 2]


@pytest.mark.parametrize("name", SCHEDULES)
def test_noised_pictures_lead_back_to_the_clean_one(name):
    noise, x0, eps = diffusion(name), torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    t = torch.tensor([0.2, 0.7])
    x_t, log_snr, alpha, sigma = noise.q_sample(x0, t, eps)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(2, 1, 1, 1))
    torch.testing.assert_close(log_snr.flatten(), noise.log_snr(t), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(noise.predict_start_from_noise(x_t, t, eps), x0, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(noise.predict_start_from_v(x_t, t, alpha * eps - sigma * x0), x0, rtol=1e-4, atol=1e-4)
    same = noise.q_sample(x0, 0.2, eps).x
    torch.testing.assert_close(same[0], x_t[0])
    assert noise.q_sample(x0, 0.2).x.shape == x0.shape


@pytest.mark.parametrize("name", SCHEDULES)
def test_going_back_to_more_noise_keeps_the_marginal(name):
    """Noise of 0.4 taken to 0.6 is noise of 0.6: the added variance is the difference, not the added deviation."""
    noise = diffusion(name)
    sigma = {t: torch.sigmoid(-noise.log_snr(torch.tensor(t))).sqrt().item() for t in (0.4, 0.6)}
    x = sigma[0.4] * torch.randn(1, 3, 200, 200)
    back = noise.q_sample_from_to(x, 0.4, 0.6)
    assert back.std().item() == pytest.approx(sigma[0.6], rel=0.01)
    if name == "cosine":
        assert sigma[0.6] == pytest.approx(0.812, abs=1e-3)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_posterior_is_that_of_bayes(name):
    """Mean and variance from the product of q(x_s | x0) and q(x_t | x_s), without the formula of the package."""
    noise = diffusion(name)
    x0, x_t = torch.randn(2, 3, 2, 2), torch.randn(2, 3, 2, 2)
    t, s = torch.tensor([0.5, 0.8]), torch.tensor([0.3, 0.2])
    columns = [noise.log_snr(time)[:, None, None, None] for time in (t, s)]
    (a_t, v_t), (a_s, v_s) = ((torch.sigmoid(u).sqrt(), torch.sigmoid(-u)) for u in columns)
    ratio = a_t / a_s
    step = v_t - ratio**2 * v_s
    precision = 1 / v_s + ratio**2 / step
    expected = (a_s * x0 / v_s + ratio * x_t / step) / precision
    mean, variance, log_variance = noise.q_posterior(x0, x_t, t, t_next=s)
    torch.testing.assert_close(mean, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(variance, 1 / precision, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(log_variance, variance.log())
    one_step = noise.q_posterior(x0, x_t, t)
    torch.testing.assert_close(one_step.mean, noise.q_posterior(x0, x_t, t, t_next=t - 0.1).mean)


def test_a_model_shows_the_schedules_of_its_stages():
    model = cascade(stages=2, noise_schedules=("linear", "cosine"), timesteps=(7, 5))
    for name, steps, shown in zip(("linear", "cosine"), (7, 5), model.noise_schedulers, strict=True):
        assert shown.num_timesteps == steps
        t = torch.rand(5)
        assert torch.equal(shown.log_snr(t), diffusion(name).log_snr(t))
