"""Agreement with other libraries on a shared denoiser, grid and noise: diffusers itself, and the published sigma-space
algorithms written out plainly in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from jaxtyping import config
from scipy.integrate import quad

from imagen_pytorch.diffusion.losses import NOISE_LEVELS, WEIGHTINGS
from imagen_pytorch.diffusion.multistep import exponential_multistep
from imagen_pytorch.diffusion.objectives import OBJECTIVES
from imagen_pytorch.diffusion.process import DiffusionProcess
from imagen_pytorch.diffusion.samplers import SAMPLERS, ddim_step, lambda_step
from imagen_pytorch.diffusion.schedules import Cosine, Flow, Karras, NoiseLevel
from imagen_pytorch.testing import TEST_MIXTURE, as_network, log_uniform_levels, probability_flow

STEPS = 20


@pytest.fixture(autouse=True, scope="module")
def unchecked():
    """Other tests check the annotations of these functions."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


def denoise(x, level):
    return TEST_MIXTURE(x, level, None)


def unit_noise(seed=0):
    return torch.randn(16, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def vp(ratios):
    """Variance-preserving levels with these ``sigma / alpha``; a ratio of zero is the clean end."""
    ratios = torch.as_tensor(ratios).double()
    return [NoiseLevel(1 / (1 + ratio**2).sqrt(), ratio / (1 + ratio**2).sqrt()) for ratio in ratios]


def ve(ratios):
    return [NoiseLevel(torch.ones((), dtype=torch.float64), ratio) for ratio in torch.as_tensor(ratios).double()]


def replay(noises):
    """The given noises, one after the other, whatever asks for them."""
    left = iter(noises)
    return lambda x: next(left)


def run(name, levels, start, schedule, generator=None, **options):
    return SAMPLERS[name](**options).sample(TEST_MIXTURE, schedule, start, levels, generator=generator)


# -- diffusers: float32 inside ---------------------------------------------------------------------------------------


def test_ddim_and_ancestral_steps_equal_diffusers(monkeypatch):
    from diffusers.schedulers import scheduling_ddim, scheduling_ddpm

    options = {"clip_sample": False, "prediction_type": "sample", "timestep_spacing": "trailing"}
    noises = iter(torch.randn(STEPS, 16, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    drawn = []
    monkeypatch.setattr(
        scheduling_ddpm, "randn_tensor", lambda *_, **__: drawn.append(next(noises)) or drawn[-1].float()
    )
    for name, scheduler in (
        ("ddim", scheduling_ddim.DDIMScheduler(**options)),
        ("ddpm", scheduling_ddpm.DDPMScheduler(**options)),
    ):
        scheduler.set_timesteps(STEPS)
        kept = scheduler.alphas_cumprod[scheduler.timesteps].double()
        levels = [NoiseLevel(a.sqrt(), (1 - a).sqrt()) for a in kept] + [NoiseLevel.clean()]
        x = start = unit_noise()
        for t, level in zip(scheduler.timesteps, levels, strict=False):
            x = scheduler.step(denoise(x, level), int(t), x).prev_sample
        ours = run(name, levels, start, Cosine(), generator=replay(drawn))
        torch.testing.assert_close(ours, x.double(), rtol=0, atol=1e-4)
    assert len(drawn) == STEPS  # it draws even for the last step, with a variance of 1e-20


def published_unipc(order, levels, x):
    """UniPC (Zhao et al. 2023) with B2(h): our exact steps, but half differences where two estimates are known."""
    known, origin, used, count = [], None, 0, len(levels) - 1
    for index, (t, s) in enumerate(zip(levels, levels[1:], strict=False)):
        x0 = denoise(x, t)
        if used == 1:
            x = ddim_step(origin, (x0 + known[0][1]) / 2, known[0][0], t)
        elif used:
            x = exponential_multistep(origin, known[0][0], t, [(t, x0), *known][: used + 1])
        known, origin, used = [(t, x0), *known], x, min(order, index + 1, count - index)
        if used == 2:
            lead = lambda_step(t, s) / lambda_step(known[1][0], t) / 2
            x = ddim_step(x, x0 + lead * (x0 - known[1][1]), t, s)
        else:
            x = exponential_multistep(x, t, s, known[:used])
    return x


MULTISTEP = [
    ({"solver_order": 2, "use_karras_sigmas": True}, "dpmpp_2m"),
    ({"solver_order": 2, "use_lu_lambdas": True}, "dpmpp_2m"),
    ({"solver_order": 2, "use_karras_sigmas": True, "solver_type": "heun"}, "ab2"),
]


def follow(scheduler, levels, x):
    for t, level in zip(scheduler.timesteps, levels, strict=False):
        x = scheduler.step(denoise(x, level), t, x).prev_sample
    return x.double()


@pytest.mark.parametrize("options, name", MULTISTEP)
def test_multistep_solvers_equal_diffusers(options, name):
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(prediction_type="sample", **options)
    scheduler.set_timesteps(STEPS)
    levels, start = vp(scheduler.sigmas), unit_noise()
    torch.testing.assert_close(run(name, levels, start, Cosine()), follow(scheduler, levels, start), rtol=0, atol=1e-4)


@pytest.mark.parametrize("order", [2, 3])
def test_predictor_corrector_weights_are_those_of_unipc_in_diffusers(order):
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(prediction_type="sample", solver_order=order, use_karras_sigmas=True)
    scheduler.set_timesteps(STEPS)
    levels, start = vp(scheduler.sigmas), unit_noise()
    torch.testing.assert_close(
        published_unipc(order, levels, start), follow(scheduler, levels, start), rtol=0, atol=1e-4
    )


def test_heun_equals_diffusers():
    from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler

    scheduler = HeunDiscreteScheduler(use_karras_sigmas=True)
    scheduler.set_timesteps(STEPS)
    ratios = scheduler.sigmas.double()
    levels = ve(torch.cat([ratios[:1], ratios[1::2]]))
    x = start = levels[0].sigma * unit_noise()
    for t, level in zip(scheduler.timesteps, ve(ratios), strict=False):
        x = scheduler.step((x - denoise(x, level)) / level.sigma, t, x).prev_sample
    torch.testing.assert_close(run("heun", levels, start, Karras()), x.double(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m"])
def test_edm_preconditioning_and_grid_equal_diffusers(name):
    from diffusers.schedulers.scheduling_edm_dpmsolver_multistep import EDMDPMSolverMultistepScheduler
    from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler

    scheduler = {"ddim": EDMEulerScheduler, "dpmpp_2m": EDMDPMSolverMultistepScheduler}[name]()
    scheduler.set_timesteps(STEPS)
    schedule = Karras()
    process = DiffusionProcess(
        schedule, OBJECTIVES["edm"](), NOISE_LEVELS["log_normal"](), WEIGHTINGS["edm"](), SAMPLERS[name]()
    )
    net = as_network(TEST_MIXTURE, process)
    levels = schedule.discretize(STEPS)
    x = start = levels[0].sigma * unit_noise()
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t)
        x = scheduler.step(net(scaled, t.double().expand(16), None), t, x).prev_sample
    ours = process.sampler.sample(process.denoiser(net), schedule, start, levels)
    torch.testing.assert_close(ours, x.double(), rtol=0, atol=1e-4)


def test_flow_from_pure_noise_equals_diffusers():
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(STEPS)
    levels = [NoiseLevel(1 - sigma, sigma) for sigma in scheduler.sigmas.double()]
    assert float(levels[0].alpha) == 0
    x = start = unit_noise()
    for t, level in zip(scheduler.timesteps, levels, strict=False):
        x = scheduler.step((x - denoise(x, level)) / level.sigma, t, x).prev_sample
    torch.testing.assert_close(run("ddim", levels, start, Flow(shift=3.0)), x.double(), rtol=0, atol=1e-4)


def test_third_order_here_is_third_order_and_in_diffusers_second():
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    start = 20 * unit_noise()
    exact = probability_flow(TEST_MIXTURE, start, 20.0, 0.05)

    def errors(steps):
        levels = log_uniform_levels(Cosine(), 20.0, 0.05, steps)
        scheduler = DPMSolverMultistepScheduler(
            prediction_type="sample", solver_order=3, lower_order_final=False, final_sigmas_type="sigma_min"
        )
        scheduler.set_timesteps(steps)
        scheduler.sigmas = torch.stack([level.sigma_edm for level in levels])
        x = levels[0].alpha * start
        ends = follow(scheduler, levels, x), run("ab3", levels, x, Cosine())
        return [float((end / levels[-1].alpha - exact).square().mean().sqrt()) for end in ends]

    (theirs, ours), (theirs_fine, ours_fine) = errors(32), errors(64)
    assert math.log2(theirs / theirs_fine) < 2.5
    assert math.log2(ours / ours_fine) > 2.8
    assert ours_fine < theirs_fine / 2


def test_a_last_step_to_the_clean_end_is_finite_where_unipc_bh1_of_diffusers_is_not():
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(prediction_type="sample", solver_type="bh1", use_karras_sigmas=True)
    scheduler.set_timesteps(STEPS)
    levels, start = vp(scheduler.sigmas), unit_noise()
    assert torch.isnan(follow(scheduler, levels, start)).any()
    assert torch.isfinite(run("pc2", levels, start, Cosine())).all()


# -- published algorithms in sigma space, float64 ---------------------------------------------------------------------


def karras_ratios(steps, low=0.002, high=80.0, rho=7.0):
    ramp = np.linspace(0, 1, steps)
    return (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho


def at(x, sigma):
    return denoise(x, NoiseLevel(torch.ones((), dtype=torch.float64), torch.tensor(sigma, dtype=torch.float64)))


def plain_euler(x, sigmas, noises):
    for here, there in zip(sigmas, sigmas[1:], strict=False):
        x = x + (x - at(x, here)) / here * (there - here)
    return x


def plain_heun(x, sigmas, noises):
    for here, there in zip(sigmas, sigmas[1:], strict=False):
        slope = (x - at(x, here)) / here
        guess = x + slope * (there - here)
        if there:
            slope = (slope + (guess - at(guess, there)) / there) / 2
        x = x + slope * (there - here)
    return x


def plain_ancestral(x, sigmas, noises):
    for here, there in zip(sigmas, sigmas[1:], strict=False):
        up = math.sqrt(there**2 * (here**2 - there**2) / here**2)
        down = math.sqrt(there**2 - up**2)
        x = x + (x - at(x, here)) / here * (down - here)
        if there:
            x = x + up * next(noises)
    return x


def plain_2m(x, sigmas, noises):
    old = None
    for index, (here, there) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
        x0 = at(x, here)
        if not there:
            return x0
        h, mix = math.log(here / there), x0
        if old is not None:
            r = math.log(sigmas[index - 1] / here) / h
            mix = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * old
        x, old = there / here * x - math.expm1(-h) * mix, x0
    return x


def plain_sde_2m(kind):
    def sample(x, sigmas, noises):
        old = None
        for index, (here, there) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
            x0 = at(x, here)
            if not there:
                return x0
            h = math.log(here / there)
            x = there / here * math.exp(-h) * x - math.expm1(-2 * h) * x0
            if old is not None:
                r = math.log(sigmas[index - 1] / here) / h
                lead = 0.5 * -math.expm1(-2 * h) if kind == "midpoint" else math.expm1(-2 * h) / (2 * h) + 1
                x = x + lead / r * (x0 - old)
            x, old = x + there * math.sqrt(-math.expm1(-2 * h)) * next(noises), x0
        return x

    return sample


def plain_lms(x, sigmas, noises, order=4):
    slopes = []
    for index, (here, there) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
        slopes = [(x - at(x, here)) / here, *slopes][:order]
        nodes = [sigmas[index - back] for back in range(len(slopes))]

        def basis(sigma, j, nodes=nodes):
            return math.prod((sigma - node) / (nodes[j] - node) for k, node in enumerate(nodes) if k != j)

        x = x + sum(quad(basis, here, there, args=(j,))[0] * slope for j, slope in enumerate(slopes))
    return x


PLAIN = {
    "ddim": plain_euler,
    "heun": plain_heun,
    "ddpm": plain_ancestral,
    "dpmpp_2m": plain_2m,
    "dpmpp_2m_sde": plain_sde_2m("midpoint"),
    "dpmpp_2m_sde_heun": plain_sde_2m("heun"),
    "lms4": plain_lms,
}


@pytest.mark.parametrize("name", PLAIN)
def test_samplers_equal_the_published_sigma_space_algorithms(name):
    sigmas = list(karras_ratios(STEPS)) + ([] if name == "lms4" else [0.0])  # its last step here is of first order
    start = 80 * unit_noise()
    noises = [unit_noise(seed) for seed in range(1, STEPS + 1)]
    theirs = PLAIN[name](start, sigmas, iter(noises))
    ours = run(name, ve(sigmas), start, Karras(), generator=replay(noises))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_karras_grid_equals_its_formula():
    ratios = torch.stack([level.sigma_edm for level in Karras().discretize(STEPS)[:-1]])
    np.testing.assert_allclose(ratios.numpy(), karras_ratios(STEPS), rtol=1e-13)
