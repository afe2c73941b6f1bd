"""How near samplers come to the exact solution of a guided problem, by the number of evaluations.

    python benchmarks/solvers.py            # prints the table
    python benchmarks/solvers.py --save     # and writes it, dated, to benchmarks/results

The denoiser is exact: guidance of scale 3 from a mixture of four parts in the plane towards one of two. The distance is
Frechet's, between normal distributions with the means and covariances of the samples and of those that the
probability-flow equation gives in 2000 steps. A sampler that adds noise does not solve that equation where guidance
changed it; "ddpm" with 250 steps is what imagen-pytorch samples with.
"""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path

import torch
from models import machine
from torch import Tensor

from imagen_pytorch.diffusion.guidance import GUIDANCE, guided
from imagen_pytorch.diffusion.losses import NOISE_LEVELS, WEIGHTINGS
from imagen_pytorch.diffusion.objectives import OBJECTIVES
from imagen_pytorch.diffusion.process import DiffusionProcess
from imagen_pytorch.diffusion.samplers import SAMPLERS
from imagen_pytorch.diffusion.schedules import Cosine
from imagen_pytorch.testing import TEST_MIXTURE, IsotropicMixture

CONDITIONAL = IsotropicMixture(means=((1.0, 0.2), (0.6, -0.6)), stds=(0.3, 0.2), weights=(0.6, 0.4))
COUNTS = (8, 12, 16, 20, 30)
CHOSEN = {
    **dict.fromkeys(("dpmpp_2m", "pc2", "pc3", "ddim", "dpmpp_2m_sde"), COUNTS),
    "ddpm": (*COUNTS, 250, 1000),
}
RESULT = Path(__file__).parent / "results" / "solvers.json"


def frechet(one: Tensor, other: Tensor) -> float:
    """Frechet distance of two sets of points ``(n, d)``, as a length: the root of the squared form."""
    first, second = one.T.cov(), other.T.cov()
    shared = torch.linalg.eigvals(first @ second).real.clamp(min=0).sqrt().sum()
    squared = (one.mean(0) - other.mean(0)).square().sum() + first.trace() + second.trace() - 2 * shared
    return float(squared.clamp(min=0).sqrt())


def main() -> None:
    """Sample, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=20_000)
    parser.add_argument("--save", action="store_true", help="write the result, dated")
    options = parser.parse_args()
    process = DiffusionProcess(
        Cosine(), OBJECTIVES["noise"](), NOISE_LEVELS["uniform"](), WEIGHTINGS["plain"](), SAMPLERS["ddpm"]()
    )

    def drawn(sampler: str, steps: int) -> Tensor:
        denoise = guided(lambda x, level, before, both: (CONDITIONAL(x, level, before), TEST_MIXTURE(x, level, before)),
                         GUIDANCE["cfg"](3.0))  # fmt: skip
        noise = torch.Generator().manual_seed(0)
        return process.sample(denoise, (options.points, 2), steps=steps, sampler=sampler, generator=noise,
                              dtype=torch.float64)  # fmt: skip

    exact = drawn("dpmpp_2m", 2000)
    rows = [
        {"sampler": name, **{str(steps): frechet(drawn(name, steps), exact) for steps in counts}}
        for name, counts in CHOSEN.items()
    ]
    for row in rows:
        print("  ".join(f"{name} {value if isinstance(value, str) else f'{value:.4f}'}" for name, value in row.items()))
    if options.save:
        about = {"date": datetime.date.today().isoformat(), "machine": machine(), "points": options.points}
        RESULT.write_text(json.dumps({**about, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
