"""Prediction times loss: what a network says, and where its error is measured, in nine cells.

    python benchmarks/nine_cells.py            # prints the table; minutes on two cores
    python benchmarks/nine_cells.py --save     # and writes it, dated, to benchmarks/results

A small unconditional network draws 16x16 images of emoji64, trained for equally many steps from equal weights on equal
batches in every cell. A cell says the kernel distance (KID x 1000, with its interval) of its samples from real
images, by an extractor that took no part in training, and the root mean squared error of its estimates of held-out
images at a log-SNR of -3, 0 and 3, which compares all cells in one space. Columns with the same loss have the same
weight of every noise level, by theory and by a test.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import time
from pathlib import Path
from typing import Any

import torch
from models import machine
from torch import Tensor

from imagen_pytorch import Imagen, Unet
from imagen_pytorch.data import open_source
from imagen_pytorch.evaluation.distances import kid
from imagen_pytorch.evaluation.features import feature_extractor

PREDICTIONS = SPACES = ("x0", "eps", "v")
LOG_SNRS = (-3.0, 0.0, 3.0)
SIZE = 16
RESULT = Path(__file__).parent / "results" / "nine_cells.json"


def network() -> Unet:
    """A network for images of 16 pixels, without text."""
    torch.manual_seed(0)
    return Unet(dim=32, dim_mults=(1, 2), num_resnet_blocks=1, layer_attns=(False, True), layer_cross_attns=False,
                cond_on_text=False, attn_heads=2, attn_dim_head=32, init_cross_embed=False, init_conv_kernel_size=3,
                use_global_context_attn=False)  # fmt: skip


def trained(prediction: str, space: str, images: Tensor, options: argparse.Namespace) -> Imagen:
    """The average of the weights of one cell over its training."""
    model = Imagen(network(), image_sizes=SIZE, condition_on_text=False, pred_objectives=prediction, loss_space=space,
                   min_snr_loss_weight=False, timesteps=options.sample_steps, sampler="dpmpp_2m")  # fmt: skip
    average = copy.deepcopy(model).eval()
    optimizer = torch.optim.Adam(model.parameters(), lr=options.lr, betas=(0.9, 0.99))
    generator = torch.Generator().manual_seed(options.seed)
    for step in range(options.steps):
        rows = torch.randint(len(images), (options.batch_size,), generator=generator)
        model(images[rows], generator=generator).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = options.lr * min(1.0, (step + 1) / 50)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for own, new in zip(average.parameters(), model.parameters(), strict=True):
                own.lerp_(new, 1 - min(options.ema, (1 + step) / (10 + step)))
    return average


@torch.no_grad()
def errors(model: Imagen, images: Tensor) -> list[float]:
    """Root mean squared error of the estimates of images in [-1, 1] at each log-SNR."""
    process, found = model.stages[0].process, []
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    denoise = process.denoiser(lambda x, c_noise, before: model.unets[0](x, c_noise))
    for log_snr in LOG_SNRS:
        t = process.schedule.inverse(torch.tensor(log_snr, dtype=torch.float64)).expand(len(images))
        level = process.level(t, images)
        estimate = denoise(process.add_noise(images, level, noise), level, None)
        found.append(float((estimate - images).square().mean().sqrt()))
    return found


def main() -> None:
    """Train, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300, help="of training, of each cell")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--count", type=int, default=256, help="samples of each cell")
    parser.add_argument("--sample-steps", type=int, default=20)
    parser.add_argument("--extractor", help="of features; by default the first that is installed")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--ema", type=float, default=0.99)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", action="store_true", help="write the result, dated")
    options = parser.parse_args()
    torch.set_num_threads(1)

    flat = {split: open_source("emoji64", image_size=SIZE, split=split, styles=["flat"]) for split in ("train", "pair")}
    images, held_out = (
        torch.stack([flat[name][index][0] for index in range(min(most, len(flat[name])))])
        for name, most in (("train", 2000), ("pair", 256))
    )
    extractor = feature_extractor(options.extractor)
    real = extractor(images[: 2 * options.count])
    rows: list[dict[str, Any]] = []
    for prediction in PREDICTIONS:
        for space in SPACES:
            start = time.process_time()
            average = trained(prediction, space, images, options)
            drawn = average.sample(batch_size=options.count, seed=0, use_tqdm=False)
            distance = kid(real, extractor(drawn))
            ends = [round(1000 * end, 1) for end in (distance.low, distance.high)]
            row = {"prediction": prediction, "loss": space, "KID": round(1000 * distance.value, 1), "95 %": ends}
            row |= {f"RMSE {snr:+g}": round(error, 4)
                    for snr, error in zip(LOG_SNRS, errors(average, held_out * 2 - 1), strict=True)}  # fmt: skip
            rows.append({**row, "seconds": round(time.process_time() - start, 1)})
            print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    if options.save:
        about = {"date": datetime.date.today().isoformat(), "machine": machine(), "torch": torch.__version__,
                 "extractor": extractor.name, **vars(options)}  # fmt: skip
        RESULT.write_text(json.dumps({**about, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
