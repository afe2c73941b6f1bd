"""Samples while a model is trained: sheets from the same captions and seeds each time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._data import caption_of, images_of
from ._files import write_new
from ._options import guidance_weight
from ._outputs import Images, Videos, outputs_of

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.data import Dataset

    from ..cascade.cascade import Cascade
    from ..trainer import ImagenTrainer

#: items of the data that lend their captions or their images to the samples
BORROWED = 4
#: seed of every sheet, whose noise is therefore the same at every step
SHEET_SEED = 0


def training_outputs(imagen: Cascade) -> Images:
    """The kind of files that samples are; a video model trained on images alone makes the shortest videos it can."""
    if imagen.is_video and imagen.video_frames is None:
        return Videos(imagen, frames=imagen.temporal_downsample_factor[0])
    return outputs_of(imagen)


def borrowed(dataset: Dataset) -> list[Any]:
    """A few items, evenly spread over a data set, without a change to the random state of the training."""
    from ..training.rng import isolated

    count = len(dataset)  # type: ignore[arg-type]
    with isolated(0):
        return [dataset[index * count // BORROWED] for index in range(min(BORROWED, count))]


def borrowed_captions(dataset: Dataset) -> list[str]:
    """A few different captions, evenly spread over a data set; none if it has none."""
    return list(dict.fromkeys(caption for caption in map(caption_of, borrowed(dataset)) if caption is not None))


class Samples:
    """Makes and writes the sheets.

    Args:
        trainer: of the model.
        dataset: an upsampler below which nothing is trained enlarges images of it.
        captions: of the samples; none for a model without text.
        folder: where the sheets are written.
        cond_scale: guidance weight; None is the model's own.
    """

    def __init__(
        self, trainer: ImagenTrainer, dataset: Dataset, captions: Sequence[str], folder: Path, cond_scale: Any
    ) -> None:
        self.trainer, self.dataset, self.captions, self.folder = trainer, dataset, list(captions), folder
        self.outputs = training_outputs(trainer.imagen)
        self.cond_scale = guidance_weight(trainer.imagen, cond_scale)
        self._examples: tuple[Tensor, list[str]] | None = None

    def needs_examples(self, number: int) -> bool:
        """Return whether a U-Net (1-based) can only be shown on images of the data, because one before it is
        untrained."""
        from ..training.sampling import last_trained

        return last_trained(list(self.trainer.imagen.unets), self.trainer.steps.tolist()) < number - 1

    def _borrowed(self) -> tuple[Tensor, list[str]]:
        """Images of the data and their captions, the same ones each time."""
        import torch

        if self._examples is None:
            items = borrowed(self.dataset)
            images = [images_of(item) for item in items]
            if isinstance(self.outputs, Videos) and images[0].ndim == 3:  # each a film of one image
                images = [image[:, None].expand(-1, self.outputs.frames, -1, -1) for image in images]
            texts = [] if self.trainer.imagen.unconditional else [caption_of(item) or "" for item in items]
            self._examples = torch.stack(images), texts
        return self._examples

    def _arguments(self, number: int) -> dict[str, Any]:
        """Return the arguments of sampling: the captions, a number of images, or enlarged images of the data."""
        if self.needs_examples(number):
            images, texts = self._borrowed()
            start = {"start_at_unet_number": number, "start_image_or_video": images}
            return {**start, **({"texts": texts} if texts else {"batch_size": len(images)})}
        return {"texts": self.captions} if self.captions else {"batch_size": BORROWED}

    def write(self, number: int, step: int) -> Path | None:
        """Sample a U-Net (1-based) after a step of its training and write a sheet that says so.

        Where the weights are shared out, all processes call this; the main one writes.

        Returns:
            where the sheet is; None on the other processes.
        """
        arguments = self._arguments(number)
        items = self.trainer.sample(
            **arguments,
            **self.outputs.arguments(),
            seed=SHEET_SEED,
            cond_scale=self.cond_scale,
            stop_at_unet_number=number,
            use_tqdm=False,
        )
        if not self.trainer.processes.is_main:
            return None
        scale = self.cond_scale[number - 1] if isinstance(self.cond_scale, list) else self.cond_scale
        unet = f"U-Net {number}, " if len(self.trainer.imagen.unets) > 1 else ""
        title = f"{unet}step {step}, seed {SHEET_SEED}, guidance {scale:g}"
        sheet = self.outputs.grid(items, arguments.get("texts") or [""] * len(items), title=title)
        name = f"sample-{step:06}{f'-unet{number}' if number > 1 else ''}{self.outputs.suffix}"
        return write_new(self.outputs.encode(sheet, self.outputs.suffix, number - 1), self.folder / name)
