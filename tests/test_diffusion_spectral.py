"""The loss by spatial frequency: known tables, Parseval's identity, and the minimiser of the plain loss."""

from __future__ import annotations

import pytest
import torch

from imagen_pytorch.diffusion.losses import NOISE_LEVELS, WEIGHTINGS
from imagen_pytorch.diffusion.objectives import OBJECTIVES
from imagen_pytorch.diffusion.process import DiffusionProcess
from imagen_pytorch.diffusion.samplers import SAMPLERS
from imagen_pytorch.diffusion.schedules import Cosine
from imagen_pytorch.diffusion.spectral import SPECTRA, SpectralLoss
from imagen_pytorch.testing import IsotropicGaussian, as_network

STD = 0.5


def process(objective="v", **options):
    parts = (OBJECTIVES[objective](), NOISE_LEVELS["uniform"](), WEIGHTINGS["plain"](), SAMPLERS["ddim"]())
    return DiffusionProcess(Cosine(), *parts, **options)


def test_the_weights_are_those_of_jpeg_at_quality_85():
    """Low frequencies count twice as much as the mean, the least one a quarter; "sharp" is the reciprocal tilt."""
    luma = SpectralLoss("jpeg85").weights(colour=False)[0, 0, 0]
    assert float(luma[0, 0]) == pytest.approx(2.013, abs=1e-3)  # a step of 5 for the mean of a block
    assert float(luma.max()) == pytest.approx(3.355, abs=1e-3) and float(luma.min()) == pytest.approx(0.2796, abs=1e-3)
    assert float(luma[:4, :4].mean()) == pytest.approx(2.22, abs=0.01)
    product = luma * SpectralLoss("sharp").weights(colour=False)[0, 0, 0]
    torch.testing.assert_close(product, product[0, 0].expand(8, 8))


@pytest.mark.parametrize("table", SPECTRA.names())
def test_weights_are_positive_and_have_mean_1_in_every_channel(table):
    weights = SpectralLoss(table).weights()
    assert weights.shape == (3, 1, 1, 8, 8) and bool((weights > 0).all())
    torch.testing.assert_close(weights.mean((1, 2, 3, 4)), torch.ones(3))


@pytest.mark.parametrize("shape", [(2, 3, 16, 24), (2, 1, 8, 8), (2, 4, 16, 8), (2, 3, 3, 16, 8)])
def test_the_flat_table_repeats_the_plain_loss(shape):
    """The transform is orthonormal: with weights of 1 the sum of both losses is (1 + weight) times the plain one."""
    x0, noise = torch.randn(2, *shape)
    t = torch.tensor([0.2, 0.7])

    def net(x, c_noise, before):
        return 0.3 * x

    plain = process().loss(net, x0, t, noise)
    both = process(spectral=SpectralLoss("flat", 0.7)).loss(net, x0, t, noise)
    torch.testing.assert_close(both, 1.7 * plain, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("table", "channels"), [("jpeg85", 1), ("sharp", 1), ("flat", 1), ("jpeg85", 3)])
def test_the_loss_is_a_positive_definite_quadratic_form(table, channels):
    basis = torch.eye(channels * 64).reshape(-1, channels, 8, 8)
    loss = SpectralLoss(table)
    own = loss(basis)
    pairs = loss((basis[:, None] + basis).reshape(-1, channels, 8, 8)).reshape(len(basis), -1)
    form = (pairs - own[:, None] - own).double() / 2
    assert float(torch.linalg.eigvalsh(form).min()) > 1e-5 / len(basis)
    residual = torch.randn(5, channels, 8, 8)
    expected = torch.einsum("bi,ij,bj->b", residual.flatten(1).double(), form, residual.flatten(1).double())
    torch.testing.assert_close(loss(residual), expected.float(), rtol=1e-3, atol=1e-5)


def exact_draws(shape):
    """Data and noise whose covariance over the batch is exactly that of their distribution."""
    size = torch.Size(shape).numel()
    draws = torch.randn(2 * size + 8, 2 * size, dtype=torch.float64)
    exact = torch.linalg.qr(draws).Q * len(draws) ** 0.5
    x0, noise = exact.float().split(size, dim=1)
    return STD * x0.reshape(-1, *shape), noise.reshape(-1, *shape)


@pytest.mark.parametrize(
    ("objective", "table", "shape"),
    [
        ("noise", "jpeg85", (1, 8, 8)),
        ("x_start", "sharp", (1, 8, 8)),
        ("v", "jpeg85", (3, 2, 6)),
        ("flow", "sharp", (3, 3, 4)),
    ],
)
def test_the_best_linear_network_is_the_posterior_mean_as_without(objective, table, shape):
    """Gaussian data: whatever the weights of the frequencies, the minimiser is the exact denoiser."""
    model = process(objective, spectral=SpectralLoss(table, 5.0))
    x0, noise = exact_draws(shape)
    t = torch.tensor([0.4]).expand(len(x0))
    matrix = torch.zeros(x0[0].numel(), x0[0].numel(), requires_grad=True)

    def net(x, c_noise, before):
        return (x.flatten(1) @ matrix).reshape(x.shape)

    optimizer = torch.optim.LBFGS([matrix], max_iter=100, tolerance_grad=1e-9, tolerance_change=1e-12,
                                  line_search_fn="strong_wolfe")  # fmt: skip

    def closure():
        optimizer.zero_grad()
        loss = model.loss(net, x0, t, noise).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    exact = as_network(IsotropicGaussian(0.0, STD), model)
    x = torch.randn(4, *shape)
    level = model.level(torch.tensor([0.4]).expand(4), x)
    found, wanted = (model.denoiser(each)(x, level, None) for each in (net, exact))
    torch.testing.assert_close(found, wanted.float(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("table", SPECTRA.names())
@pytest.mark.parametrize("size", [(1, 1), (2, 7), (9, 16), (5, 12, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_finite_on_any_size_and_precision(table, size, dtype):
    residual = torch.randn(2, 3, *size).to(dtype).requires_grad_()
    loss = SpectralLoss(table)(residual)
    loss.sum().backward()
    assert loss.dtype == torch.float32 and loss.shape == (2,)
    assert bool(residual.grad.isfinite().all()) and bool(residual.grad.any())


def test_frames_and_items_are_independent_and_autocast_changes_nothing():
    clip = torch.randn(2, 3, 4, 8, 8)
    loss = SpectralLoss()
    frames = loss(clip.transpose(1, 2).flatten(0, 1)).reshape(2, 4).mean(1)
    torch.testing.assert_close(loss(clip), frames)
    torch.testing.assert_close(loss(clip)[:1], loss(clip[:1]))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(clip), SpectralLoss()(clip.clone()))


def test_mistakes_are_named():
    with pytest.raises(ValueError, match='no table of frequency weights "jpeg"; known: jpeg85, sharp, flat'):
        SpectralLoss("jpeg")
    with pytest.raises(ValueError, match="weight must lie between 0"):
        SpectralLoss(weight=-1)
