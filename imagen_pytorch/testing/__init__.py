"""Exact answers to test samplers, schedules, objectives and guidance against, without a trained network.

Data with a known density has a known denoiser: `Gaussian`, `IsotropicGaussian` and `IsotropicMixture` are called like
any other ``denoise(x, level, x0_before) -> x0``. `as_network` turns one into what a U-Net predicts, `affine_response`
reads off exactly what a sampler does to Gaussian data, and `probability_flow` integrates the ODE to machine precision.
"""

from .networks import as_network
from .oracles import TEST_MIXTURE, Gaussian, IsotropicGaussian, IsotropicMixture
from .probes import AffineResponse, affine_response, moment_exact_noise
from .reference import log_uniform_levels, probability_flow

__all__ = [
    "TEST_MIXTURE",
    "AffineResponse",
    "Gaussian",
    "IsotropicGaussian",
    "IsotropicMixture",
    "affine_response",
    "as_network",
    "log_uniform_levels",
    "moment_exact_noise",
    "probability_flow",
]
