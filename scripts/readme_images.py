"""Draw the film at the top of the README: images of the pretrained model, from noise to the finished image.

    python scripts/readme_images.py

Writes ``docs/emerging.gif``. Each frame shows the estimate of the image after one sampling step: those of the base
network at 16x16, then those of the upsampler at 64x64.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from PIL import Image

from imagen_pytorch import load_demo
from imagen_pytorch.evaluation.plots import captioned_grid
from imagen_pytorch.pretrained import DEFAULT, pretrained_prompts

PATH = Path(__file__).parents[1] / "docs" / "emerging.gif"
#: the first prompts of the model card, each with seed 0
PROMPTS, SIZE = 8, 64
#: milliseconds of a frame, and of the last one
FRAME, LAST = 160, 4000


def main() -> None:
    """Draw the prompts, keep every step, write the film."""
    texts = pretrained_prompts(DEFAULT)[:PROMPTS]
    sheets: list[Image.Image] = []

    def keep(unet_number: int, step: int, total: int, estimate: torch.Tensor) -> None:
        images = torch.nn.functional.interpolate(estimate.clamp(0, 1), size=(SIZE, SIZE))
        title = f"U-Net {unet_number}, {estimate.shape[-1]}x{estimate.shape[-1]}, step {step} of {total}"
        sheets.append(captioned_grid(images, texts, columns=PROMPTS, scale=2, title=title))

    load_demo().sample(texts=texts, seed=[0] * PROMPTS, callback=keep, use_tqdm=False)
    palettes = [sheet.quantize(192, dither=Image.Dither.NONE) for sheet in sheets]
    durations = [FRAME] * (len(palettes) - 1) + [LAST]
    palettes[0].save(PATH, save_all=True, append_images=palettes[1:], duration=durations, loop=0, optimize=True)
    sys.stdout.write(f"{PATH}: {len(palettes)} frames, {PATH.stat().st_size / 1e3:.0f} kB\n")


if __name__ == "__main__":
    main()
