"""A model whose samples are judged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..version import __version__
from ._files import encoded, tell, write_new
from ._models import load
from ._options import chosen_device
from ._sampling import Wanted, check_arguments, last_unet, results, sample_arguments, settings

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from ..evaluation.subject import Enlarged

#: steps of the variational bound that are evaluated for each image
EVALUATIONS = 32


@dataclass(frozen=True)
class DrawingOptions:
    """Options of the commands that draw images and judge them; the help of a command says what they mean."""

    seed: int
    cond_scale: Any
    guidance: str | None
    steps: Any
    sampler: Any
    precision: str
    compile: bool
    cache_interval: Any
    load_ema: bool
    stop_at_unet: int | None
    batch_size: int
    output: str
    device: str
    quiet: bool


@dataclass(frozen=True)
class EvalOptions(DrawingOptions):
    """The options of ``imagen eval``; the command's help says what they mean."""

    target: str | None
    data: str | None
    split: str | None
    limit: int
    reference: int
    image_size: int | None
    extractor: tuple[str, ...]
    metrics: tuple[str, ...]


def write_results(folder: str, name: str, facts: Mapping[str, Any], sheet: Image.Image) -> None:
    """Write the facts, with date and version, to ``<name>.json`` and the sheet to ``<name>.png``; print both paths."""
    made = {"date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "version": __version__, **facts}
    tell(write_new(f"{json.dumps(made, indent=2)}\n".encode(), Path(folder, f"{name}.json"), listed=False))
    tell(write_new(encoded(sheet), Path(folder, f"{name}.png")))


class Model:
    """A model of images, or where that is allowed of videos, whose samples are judged.

    Args:
        path: of its checkpoint.
        request: the options of a command.
        videos: allow a model of videos.

    Raises:
        click.ClickException: it cannot be used.
    """

    def __init__(self, path: str, request: DrawingOptions, videos: bool = False) -> None:
        device = chosen_device(request.device)
        self.path, self.imagen = path, load(path, request.load_ema).to(device)
        if self.imagen.is_video and not videos:
            raise click.UsageError(
                f"{path} makes videos; imagen eval and compare judge images, and eval also videos of moving-digits"
            )
        if self.imagen.channels not in (1, 3):
            raise click.UsageError(f"{path} makes images of {self.imagen.channels} channels; 1 or 3 can be judged")
        self.stop = last_unet(self.imagen, path, request.stop_at_unet)
        self.last = self.stop or len(self.imagen.unets)
        self.size = self.imagen.stages[self.last - 1].size
        self.place = f"{path} on {device}"

    def sample(self, wanted: list[Wanted], request: DrawingOptions) -> tuple[Tensor, str]:
        """Return images ``(n, c, h, w)``, or clips with frames, in [0, 1], and how they were sampled, in words."""
        import torch

        arguments = sample_arguments(request, self.imagen, self.stop)
        check_arguments(self.imagen, arguments)
        made = [item.stages[-1].cpu() for item in results(self.imagen, wanted, request.batch_size, arguments)]
        return self._shown(torch.stack(made)), settings(self.imagen, arguments)

    def enlarged(self, real: Tensor, captions: list[str], request: DrawingOptions) -> list[Enlarged]:
        """Return the outputs of each trained upsampler for real images that were shrunk to the size before it."""
        from ..evaluation.subject import Enlarged
        from ..images import resize

        found = []
        for number in range(2, self.last + 1):
            before, size = self.imagen.stages[number - 2].size, self.imagen.stages[number - 1].size
            whole = resize(real, size, "area" if max(size) < real.shape[-1] else "bicubic")
            small = resize(whole, before, self.imagen.resize_mode)
            arguments = {**sample_arguments(request, self.imagen, number), "return_all_unet_outputs": False}
            given = {"texts": captions} if not self.imagen.unconditional else {"batch_size": len(small)}
            made = self.imagen.sample(
                **given,
                **arguments,
                start_at_unet_number=number,
                start_image_or_video=self._given(small),
                seed=[request.seed + index for index in range(len(small))],
                max_batch_size=request.batch_size,
            )
            found.append(Enlarged(number, self._shown(made.cpu()), resize(small, size, "bicubic"), whole))
        return found

    def bits(self, real: Tensor, captions: list[str], request: DrawingOptions) -> dict[int, Tensor]:
        """Return a bound of the bits per dimension of real images under each U-Net, by its number."""
        from ..evaluation.likelihood import bits_per_dim

        options = {"method": "bound", "evaluations": EVALUATIONS, "batch_size": request.batch_size}
        texts = {} if self.imagen.unconditional else {"texts": captions}
        return {
            number: bits_per_dim(
                self.imagen, self._given(real), unet_number=number, seed=request.seed, **texts, **options
            ).cpu()
            for number in range(1, self.last + 1)
        }

    def _given(self, images: Tensor) -> Tensor:
        """Images in [0, 1] in the range that the model takes."""
        return images if self.imagen.auto_normalize_img else images * 2 - 1

    def _shown(self, images: Tensor) -> Tensor:
        """Convert generated images to [0, 1], whatever the range of the model's output."""
        return (images if self.imagen.auto_normalize_img else (images + 1) / 2).float().clamp(0, 1)

    def record(self) -> dict[str, Any]:
        """Return the path of the model and a digest of its weights."""
        from ..training.identity import contents_digest

        return {"path": self.path, "digest": contents_digest({"model": self.imagen.state_dict()})}
