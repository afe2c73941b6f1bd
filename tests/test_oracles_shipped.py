"""The oracles that the package ships: each against numbers found another way, and plugged in where a U-Net goes."""

from __future__ import annotations

import math

import pytest
import torch
from jaxtyping import config

from imagen_pytorch import testing
from imagen_pytorch.diffusion.losses import NOISE_LEVELS, WEIGHTINGS
from imagen_pytorch.diffusion.objectives import OBJECTIVES, Coefficients, XStart
from imagen_pytorch.diffusion.process import DiffusionProcess
from imagen_pytorch.diffusion.samplers import SAMPLERS
from imagen_pytorch.diffusion.schedules import FAMILIES, Cosine, Karras
from imagen_pytorch.imagen import ElucidatedImagen, Imagen
from imagen_pytorch.nn.unet import Unet
from imagen_pytorch.testing import (
    TEST_MIXTURE,
    Gaussian,
    IsotropicGaussian,
    IsotropicMixture,
    affine_response,
    as_network,
    log_uniform_levels,
    moment_exact_noise,
    probability_flow,
)

COVARIANCE = torch.tensor([[1.0, 0.3, 0.1], [0.3, 0.5, -0.2], [0.1, -0.2, 0.8]]).double()


@pytest.fixture
def unchecked():
    """Long runs of functions whose annotations shorter tests check."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


def level_at(log_snr, family="vp"):
    return FAMILIES[family](torch.tensor(log_snr, dtype=torch.float64))


@pytest.mark.parametrize("family", FAMILIES)
def test_gaussian_denoiser_is_the_regression_of_data_on_state(family):
    mean = torch.tensor([0.3, -0.2, 0.5]).double()
    oracle, x = Gaussian(mean, COVARIANCE), torch.randn(5, 3, dtype=torch.float64)
    for log_snr in (-6.0, 0.0, 5.0):
        level = level_at(log_snr, family)
        joint = level.alpha**2 * COVARIANCE + level.sigma**2 * torch.eye(3).double()
        expected = mean + torch.linalg.solve(joint, (x - level.alpha * mean).T).T @ (level.alpha * COVARIANCE)
        torch.testing.assert_close(oracle(x, level, None), expected, rtol=0, atol=1e-12)
    isotropic = Gaussian(mean, 0.49 * torch.eye(3).double())
    torch.testing.assert_close(isotropic(x, level, None), IsotropicGaussian(mean, 0.7)(x, level, None))
    pictures = x[:4].reshape(4, 3, 1, 1)
    torch.testing.assert_close(oracle(pictures, level, None).flatten(1), oracle(x[:4], level, None))


@pytest.mark.parametrize("family", FAMILIES)
def test_mixture_denoiser_is_the_slope_of_its_log_density(family):
    """Tweedie: ``alpha D = x + sigma^2 grad log p``."""
    x = torch.randn(20, 2, dtype=torch.float64).requires_grad_()
    for log_snr in (-4.0, 0.0, 4.0):
        level = level_at(log_snr, family)
        (slope,) = torch.autograd.grad(TEST_MIXTURE.log_density(x, level).sum(), x)
        tweedie = (x + level.sigma**2 * slope) / level.alpha
        torch.testing.assert_close(TEST_MIXTURE(x, level, None), tweedie, rtol=0, atol=1e-10)


def test_mixture_density_integrates_to_one_and_has_the_mean_of_its_draws():
    axis = torch.linspace(-8, 8, 321, dtype=torch.float64)
    plane = torch.cartesian_prod(axis, axis)
    level = level_at(1.0)
    mass = TEST_MIXTURE.log_density(plane, level).exp() * (axis[1] - axis[0]) ** 2
    assert float(mass.sum()) == pytest.approx(1, abs=1e-9)
    means, weights = torch.tensor(TEST_MIXTURE.means).double(), torch.tensor(TEST_MIXTURE.weights).double()
    torch.testing.assert_close((mass[:, None] * plane).sum(0), level.alpha * (weights @ means), rtol=0, atol=1e-7)
    drawn = TEST_MIXTURE.draw(200_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.mean(0).double(), weights @ means, rtol=0, atol=0.01)
    torch.testing.assert_close(TEST_MIXTURE.responsibilities(plane, level).sum(1), torch.ones(len(plane)).double())


def test_draws_have_the_moments_of_their_law():
    generator = torch.Generator().manual_seed(0)
    drawn = Gaussian(torch.tensor([0.3, -0.2, 0.5]), COVARIANCE.float()).draw(200_000, generator)
    torch.testing.assert_close(drawn.T.cov().double(), COVARIANCE, rtol=0, atol=0.01)
    pictures = IsotropicGaussian(0.2, 0.3).draw((1000, 3, 8, 8), generator)
    assert float(pictures.mean()) == pytest.approx(0.2, abs=0.01)
    assert float(pictures.std()) == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize("oracle", [TEST_MIXTURE, IsotropicGaussian(0.1, 0.4)], ids=["mixture", "gaussian"])
def test_oracles_take_one_level_or_one_per_item_in_any_precision(oracle):
    x, log_snrs = torch.randn(4, 2, dtype=torch.float64), torch.tensor([-3.0, -1.0, 0.0, 2.0]).double()
    level = FAMILIES["vp"](log_snrs)
    rows = [oracle(x[i : i + 1], FAMILIES["vp"](log_snrs[i]), None) for i in range(4)]
    torch.testing.assert_close(oracle(x, level, None), torch.cat(rows))
    torch.testing.assert_close(oracle(x.float(), level, None), torch.cat(rows).float(), rtol=1e-5, atol=1e-5)


def test_probability_flow_of_gaussian_data_is_its_closed_form(unchecked):
    start = 80 * torch.randn(8, 2, dtype=torch.float64)
    for oracle, spread in ((IsotropicGaussian(0.3, 0.5), 0.5), (IsotropicGaussian(0.0, 2.0), 2.0)):
        mean = oracle.mean
        shrunk = math.sqrt((spread**2 + 0.01**2) / (spread**2 + 80.0**2))
        end = probability_flow(oracle, start, 80.0, 0.01)
        torch.testing.assert_close(end, mean + (start - mean) * shrunk, rtol=0, atol=1e-9)


def test_affine_response_predicts_draws():
    schedule, oracle = Cosine(), IsotropicGaussian(0.7, 0.5)
    levels = log_uniform_levels(schedule, 20.0, 0.1, 6)
    response = affine_response(SAMPLERS["ddpm"](), oracle, schedule, levels)
    assert response.noise_gains.shape == (6,)
    generator = torch.Generator().manual_seed(0)
    start = 1 + 0.5 * torch.randn(50_000, 1, generator=generator, dtype=torch.float64)
    drawn = SAMPLERS["ddpm"]().sample(oracle, schedule, start, levels, generator=generator)
    assert float(drawn.mean()) == pytest.approx(response.mean(1.0), abs=0.01)
    assert float(drawn.var()) == pytest.approx(response.variance(0.25), rel=0.02)
    for i in (0, 1):  # the two ends are noise levels, not ratios of the schedule's time
        assert float(levels[-i].sigma_edm) == pytest.approx((20.0, 0.1)[i])


def test_moment_exact_noise_is_exact():
    x = torch.randn(8, 2, dtype=torch.float64)
    z = moment_exact_noise(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(2).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(z.T @ z / 8, torch.eye(2).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(x.T @ z, torch.zeros(2, 2).double(), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="at least 5 rows, got 4"):
        moment_exact_noise(x[:4])


def test_mistakes_get_a_sentence():
    with pytest.raises(ValueError, match="as many means, stds and weights, got 1, 2 and 1"):
        IsotropicMixture(means=((0.0,),), stds=(1.0, 2.0), weights=(1.0,))
    with pytest.raises(ValueError, match="sum to 1, got 0.5"):
        IsotropicMixture(means=((0.0,),), stds=(1.0,), weights=(0.5,))
    with pytest.raises(ValueError, match="symmetric"):
        Gaussian(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.2, 1.0]]))
    with pytest.raises(ValueError, match="without negative eigenvalues"):
        Gaussian(torch.zeros(2), torch.tensor([[1.0, 2.0], [2.0, 1.0]]))

    class Curved(XStart):
        def coefficients(self, level):
            return Coefficients(*super().coefficients(level)[:3], level.log_snr**2)

    model = DiffusionProcess(Cosine(), Curved(), NOISE_LEVELS["uniform"](), WEIGHTINGS["plain"](), SAMPLERS["ddim"]())
    with pytest.raises(ValueError, match="Curved: c_noise must be a linear function"):
        as_network(TEST_MIXTURE, model)


def test_everything_shipped_is_exported():
    assert set(testing.__all__) <= set(vars(testing))


# -- where a U-Net goes ----------------------------------------------------------------------------------------------


class OracleUnet(Unet):
    """A U-Net that knows the answer."""

    def forward(self, x, time, conditioning=None, **_):
        return self.network(x, time, None)


def oracle_model(kind, oracle, **options):
    unet = OracleUnet(dim=8, dim_mults=(1,), layer_attns=False, layer_cross_attns=False, attn_pool_text=False)
    model = kind([unet], image_sizes=16, condition_on_text=False, **options)
    model.unets[0].network = as_network(oracle, model.stages[0].process)
    return model


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp_2m", "heun", "edm"])
@pytest.mark.parametrize("kind", [Imagen, ElucidatedImagen])
def test_both_wrappers_sample_the_law_that_the_sampler_makes_of_the_data(kind, sampler, unchecked):
    oracle = IsotropicGaussian(0.1, 0.2)
    model = oracle_model(kind, oracle)
    process = model.stages[0].process
    found = model.sample(batch_size=16, sampler=sampler, steps=16, seed=0, use_tqdm=False) * 2 - 1
    chosen = SAMPLERS[sampler]()
    levels = chosen.discretize(process.schedule, 16)
    response = affine_response(chosen, oracle, process.schedule, levels)
    law = response.mean(0.0), math.sqrt(response.variance(float(levels[0].sigma) ** 2))
    assert float(found.mean()) == pytest.approx(law[0], abs=0.01)
    assert float(found.std()) == pytest.approx(law[1], rel=0.03)


@pytest.mark.parametrize("objective", [name for name in OBJECTIVES.names() if name != "edm"])
def test_imagen_with_any_objective_paints_the_same_picture(objective, unchecked):
    oracle = IsotropicGaussian(0.1, 0.2)
    pictures = [
        oracle_model(Imagen, oracle, pred_objectives=name).sample(
            batch_size=2, sampler="dpmpp_2m", steps=8, seed=0, use_tqdm=False
        )
        for name in (objective, "v")
    ]
    torch.testing.assert_close(*pictures, rtol=0, atol=2e-3)


def test_edm_and_v_prediction_are_the_same_model():
    """An EDM network and a v network that know the same data denoise alike at the same ratio of noise to signal."""
    oracle = IsotropicGaussian(0.0, 0.5)
    x = torch.randn(16, 2, dtype=torch.float64)
    answers = []
    for schedule, objective in ((Cosine(), "v"), (Karras(), "edm")):
        model = DiffusionProcess(
            schedule, OBJECTIVES[objective](), NOISE_LEVELS["uniform"](), WEIGHTINGS["plain"](), SAMPLERS["ddim"]()
        )
        level = schedule.level(torch.tensor(-2.0, dtype=torch.float64))
        answers.append(model.denoiser(as_network(oracle, model))(level.alpha * x, level, None))
    torch.testing.assert_close(*answers, rtol=0, atol=1e-12)
