"""A sharded training whose weights are ruined: nothing is written, and it goes on from the newest finite checkpoint."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from toys import CAPTIONS, pictures, small_imagen

from imagen_pytorch import ImagenTrainer
from imagen_pytorch.checkpoint import CheckpointNotWritten


def new() -> ImagenTrainer:
    torch.manual_seed(0)
    folder = {"checkpoint_path": sys.argv[1], "checkpoint_every": 1}
    return ImagenTrainer(small_imagen(), lr=1e-3, verbose=False, seed=1, strategy="fsdp2", **folder)


def weight(made: ImagenTrainer) -> torch.Tensor:
    return made.imagen.unets[0].final_conv.weight.to_local()


def main() -> None:
    torch.set_num_threads(1)
    made = new()
    for _ in range(2):
        made(pictures(2), texts=CAPTIONS[:2])
        made.update()
    with torch.no_grad():
        weight(made).fill_(math.nan)
    try:
        made.save_to_checkpoint_folder()
    except CheckpointNotWritten as error:
        assert "untouched: the weights are not finite" in str(error)
    else:
        raise AssertionError("weights that are not finite were written")
    made.checkpoints._refuse_ruined = lambda path: None  # as versions did that did not look
    made.steps[0] = 3
    made.save_to_checkpoint_folder()
    if made.is_main:
        made.store.unlock()
    again = new()
    assert again.steps.tolist() == [2] and bool(weight(again).isfinite().all())


main()
