"""Likelihoods of data whose density is known: the bound and the probability-flow ODE, alone and through a cascade."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from cascade_toys import cascade, pictures, standing_in, text, unchecked
from test_cascade_oracles import gaussian, oracle

from imagen_pytorch.diffusion.schedules import Karras, NoiseLevel
from imagen_pytorch.evaluation.likelihood import bits_per_dim, bound, dequantized, probability_flow
from imagen_pytorch.imagen import ElucidatedImagen, Imagen
from imagen_pytorch.images import resize
from imagen_pytorch.tensors import seeded
from imagen_pytorch.testing import Gaussian, IsotropicMixture

MIXTURE = IsotropicMixture(means=((-0.25,), (0.0,), (0.2,)), stds=(0.12, 0.2, 0.15), weights=(0.35, 0.35, 0.3))
VE = Karras(sigma_min=1e-3, sigma_max=80.0)


@dataclass(frozen=True)
class VP(Karras):
    """The same noise levels in a variance-preserving process."""

    family: ClassVar[str] = "vp"


@dataclass(frozen=True)
class Straight(Karras):
    """The same noise levels in a process of straight paths."""

    family: ClassVar[str] = "flow"


@pytest.fixture(autouse=True)
def fast():
    with unchecked():
        yield


def data(count: int) -> torch.Tensor:
    return MIXTURE.draw(count, torch.Generator().manual_seed(0), torch.float64)


# -- probability flow --------------------------------------------------------------------------------------------------


def test_the_flow_finds_the_likelihood_with_order_two():
    x0 = data(300)
    exact = -MIXTURE.log_density(x0, NoiseLevel.clean())
    error = {n: abs(float((probability_flow(MIXTURE, VE, x0, steps=n) - exact).mean())) for n in (50, 100, 200)}
    assert error[200] <= 0.005
    for fewer in (50, 100):
        assert math.log2(error[fewer] / error[2 * fewer]) == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize("kind", [VP, Straight])
def test_only_the_noise_level_matters(kind):
    x0, schedule = data(20), kind(sigma_min=1e-3, sigma_max=80.0)
    for method in (probability_flow, bound):
        found = [method(MIXTURE, each, x0, steps=30, generator=seeded(0, 20)) for each in (VE, schedule)]
        torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


COVARIANCE = torch.tensor([[0.3, 0.2, 0.0], [0.2, 0.4, -0.1], [0.0, -0.1, 0.2]], dtype=torch.float64)


def test_traces_are_exact_for_few_numbers_and_right_on_average_for_many():
    mean = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64)
    known = torch.distributions.MultivariateNormal(mean, COVARIANCE)
    x0 = torch.tensor([[0.4, -0.5, 0.1]], dtype=torch.float64)
    exact = probability_flow(Gaussian(mean, COVARIANCE), VE, x0, steps=200)
    torch.testing.assert_close(exact, -known.log_prob(x0), atol=5e-3, rtol=0)
    many, noise = x0.expand(2000, 3), torch.Generator().manual_seed(0)
    guessed = probability_flow(Gaussian(mean, COVARIANCE), VE, many, steps=200, probes=1, generator=noise)
    assert float(guessed.std()) > 0.01
    assert float(guessed.mean()) == pytest.approx(float(exact), abs=4 * float(guessed.std()) / 2000**0.5)
    better = probability_flow(Gaussian(mean, COVARIANCE), VE, many[:500], steps=50, probes=8, generator=noise)
    assert float(better.std()) < 0.5 * float(guessed.std())


# -- the bound ---------------------------------------------------------------------------------------------------------


def expected_gap(steps: int) -> float:
    """The bound minus the likelihood on average over data and noise, by quadrature."""
    log_snrs = torch.linspace(-2 * math.log(80), -2 * math.log(1e-3), steps + 1, dtype=torch.float64)
    place = torch.linspace(-8, 8, 401, dtype=torch.float64)
    sigma = (-log_snrs[:-1] / 2).exp()[:, None]
    x = (place * (sigma.square() + 0.07).sqrt()).flatten()[:, None].requires_grad_()
    level = VE.level(log_snrs[:-1].repeat_interleave(len(place)))
    (slope,) = torch.autograd.grad(MIXTURE(x, level, None).sum(), x)
    density = MIXTURE.log_density(x.detach(), level).exp()
    # the error of the exact estimate is sigma**2 times its slope
    table = (density * slope[:, 0]).reshape(steps, -1) * sigma.square()
    errors = torch.trapezoid(table, x.detach().reshape(steps, -1), dim=1)
    at = torch.linspace(-3, 3, 20_001, dtype=torch.float64)
    log_p = MIXTURE.log_density(at[:, None], NoiseLevel.clean())
    entropy = -torch.trapezoid(log_p.exp() * log_p, at)
    prior = torch.trapezoid(log_p.exp() * at.square(), at) / 80**2 / 2
    decoder = math.log(2 * math.pi * math.e * 1e-6) / 2
    return float(((log_snrs[1:].exp() - log_snrs[:-1].exp()) / 2 * errors).sum() + prior + decoder - entropy)


@pytest.mark.parametrize("most", [256, pytest.param(1024, marks=pytest.mark.slow)])
def test_the_bound_lies_above_the_likelihood_and_comes_nearer_with_more_steps(most):
    x0 = data(3000)
    exact = -MIXTURE.log_density(x0, NoiseLevel.clean())
    gaps = []
    # gaps in nats that a separate prototype found for another mixture of these widths, by draws
    for steps, reference in ((128, 0.449), (256, 0.200), (512, 0.093), (1024, 0.054)):
        if steps > most:
            break
        over = bound(MIXTURE, VE, x0, steps=steps, generator=torch.Generator().manual_seed(steps)) - exact
        gaps.append(float(over.mean()))
        expected = expected_gap(steps)
        assert gaps[-1] == pytest.approx(expected, abs=4 * float(over.std()) / len(x0) ** 0.5)
        assert expected == pytest.approx(reference, rel=0.2)
    assert gaps == sorted(gaps, reverse=True) and gaps[-1] > 0


def test_few_evaluations_stand_for_all_steps():
    x0 = data(1).expand(3000, 1)
    noise = torch.Generator().manual_seed(1)
    every, some = (bound(MIXTURE, VE, x0, steps=64, evaluations=n, generator=noise) for n in (None, 8))
    error = (float(every.var()) + float(some.var())) ** 0.5 / 3000**0.5
    assert float(some.mean()) == pytest.approx(float(every.mean()), abs=4 * error)


# -- stages of a cascade -----------------------------------------------------------------------------------------------

STD = 0.4
FORMS = [(Imagen, "noise"), (Imagen, "v"), (ElucidatedImagen, "edm")]


def formed(kind, objective, **options):
    more = {"pred_objectives": objective} if kind is Imagen else {}
    return cascade(kind, condition_on_text=False, **more, **options)


def gaussian_images(count: int, size: int, std: float) -> torch.Tensor:
    return 0.5 + std / 2 * torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(5)).clamp(-2, 2)


def bits(nats: torch.Tensor) -> torch.Tensor:
    return nats.flatten(1).mean(1) / math.log(2) + math.log2(127.5)


def gaussian_nats(x0: torch.Tensor) -> torch.Tensor:
    return -torch.distributions.Normal(0.0, STD).log_prob(x0)


def gaussian_bound(x0: torch.Tensor, low: float, high: float, steps: int) -> torch.Tensor:
    """The bound of each pixel on average over the noise, from the squared error of the linear estimate."""
    precision = torch.linspace(low, high, steps + 1, dtype=torch.float64).exp()
    noise = 1 / precision[:-1]
    gain = STD**2 / (STD**2 + noise)
    grown = (precision[1:] - precision[:-1]) / 2
    known, drawn = (grown * (1 - gain).square()).sum(), (grown * gain.square() * noise).sum()
    return x0.square() * (known + precision[0] / 2) + drawn + (math.log(2 * math.pi * math.e) - high) / 2


@pytest.mark.parametrize(("kind", "objective"), FORMS)
def test_bits_per_dimension_of_gaussian_pixels(kind, objective):
    model, images = formed(kind, objective), gaussian_images(4, 8, STD)
    standing_in(model, 1, oracle(objective, gaussian(STD)))
    x0 = dequantized(2 * images - 1, seeded(3, 4)).double()
    flow = bits_per_dim(model, images, steps=100, seed=3)
    torch.testing.assert_close(flow, bits(gaussian_nats(x0)), atol=0.008, rtol=0)
    over = bits_per_dim(model, images, method="bound", steps=100, seed=3)
    expected = bits(gaussian_bound(x0, *model.stages[0].process.schedule.sampling_bounds(), 100))
    torch.testing.assert_close(over, expected, atol=0.15, rtol=0)
    assert bool((expected > bits(gaussian_nats(x0))).all())


def test_bits_of_a_residual_stage_are_those_of_its_images():
    model, images = formed(Imagen, "v", stages=2, lowres_residual=(None, 0.3)), gaussian_images(3, 16, 0.3 * STD)
    net = standing_in(model, 2, oracle("v", gaussian(STD)))
    found = bits_per_dim(model, images, unet_number=2, steps=100)
    conditions = vars(net.conditions[-1])
    generators = seeded(0, 3)
    companion = resize(resize(2 * images - 1, 8, model.resize_mode), 16, model.resize_mode)
    noised, told = model.augmentation(companion, torch.full((3,), 0.2), generators)
    torch.testing.assert_close(conditions["lowres_cond_img"], noised)
    torch.testing.assert_close(conditions["lowres_noise_times"], told)
    residual = (dequantized(2 * images - 1, generators) - companion).double() / 0.3
    torch.testing.assert_close(found, bits(gaussian_nats(residual) + math.log(0.3)), atol=0.01, rtol=0)


@pytest.mark.parametrize("method", ["probability_flow", "bound"])
def test_networks_are_asked_with_their_captions_and_left_as_they_were(method):
    model, images = cascade().train(), pictures(3)
    before = torch.get_rng_state()
    given = {"text_embeds": text(3), "method": method, "steps": 3}
    whole = bits_per_dim(model, images, **given)
    assert whole.shape == (3,) and bool(whole.isfinite().all()) and not whole.requires_grad
    torch.testing.assert_close(bits_per_dim(model, images, batch_size=2, **given), whole, rtol=1e-4, atol=1e-3)
    other = bits_per_dim(model, images, **{**given, "text_embeds": text(3, seed=9)})
    assert float((other - whole).abs().max()) > 0
    assert model.training and torch.equal(before, torch.get_rng_state())
    assert all(item.grad is None for item in model.parameters())


def test_stages_that_learned_from_crops_and_augmented_images_judge_whole_images_as_they_are():
    options = {"random_crop_sizes": (None, 8), "crop_coordinates": (None, True), "augment": 0.9}
    model, images = cascade(stages=2, condition_on_text=False, **options), pictures(2, size=16)
    net = standing_in(model, 2, oracle("v", gaussian(STD)))
    net.augment_dim = model.unets[0].augment_dim
    assert bits_per_dim(model, images, unet_number=2, steps=2).shape == (2,)
    conditions = vars(net.conditions[-1])
    assert conditions["size"] == (16, 16) and conditions.get("crop_window") is None
    assert net.calls[0].x.shape[-2:] == (16, 16) and not conditions["augment_label"].any()


def test_bytes_keep_their_places():
    levels = torch.arange(256.0).reshape(1, 1, 16, 16)
    noised = dequantized(levels / 127.5 - 1, torch.Generator().manual_seed(0))
    assert torch.equal(((noised + 1) * 127.5).round(), levels)
    assert 0.9 <= float((noised - (levels / 127.5 - 1)).abs().max()) * 255 <= 1


def test_mistakes_are_named():
    model = cascade()
    for options, message in (
        ({"method": "bond"}, 'no method "bond"; known: bound, probability_flow; did you mean "bound"'),
        ({"unet_number": 2}, "unet_number"),
        ({"text_embeds": None}, "give texts"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"method": "bound", "steps": 4, "evaluations": 5}, "evaluations must be at most 4, got 5"),
        ({"probes": 0}, "probes must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            bits_per_dim(model, pictures(), **{"text_embeds": text(), **options})
