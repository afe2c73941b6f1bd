"""The data of a configuration, fit for its model: images or clips, with captions or without."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from ._errors import DATA, CommandFailed, format_error

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.data import Dataset

    from ..configs import TrainingConfig


def images_of(item: Any) -> Tensor:
    """The image ``(c, h, w)`` or clip ``(c, f, h, w)`` of an item of a data set."""
    if isinstance(item, Mapping):
        return item["images"]
    return item[0] if isinstance(item, tuple) else item


def caption_of(item: Any) -> str | None:
    """The caption of an item of a data set, if it has one."""
    if isinstance(item, Mapping):
        return item.get("texts")
    return item[1] if isinstance(item, tuple) else None


def noun_of(item: Any) -> str:
    """Return "clip" or "image", whichever an item of a data set is."""
    return "clip" if images_of(item).ndim == 4 else "image"


class _WithoutCaptions:
    """A captioned data set without its captions."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        item = self.dataset[index]
        if isinstance(item, Mapping):
            return {name: value for name, value in item.items() if name != "texts"}
        return images_of(item)


def _opened(config: TrainingConfig, image_size: tuple[int, int]) -> Dataset:
    """The data set with its captions, and as many channels as the model unless the configuration asks it for others.

    A video model whose configuration does not ask the data for ``num_frames`` takes clips of its own number of frames
    where there are clips, else images.
    """
    from ..data import DataError, open_source
    from ..images import MODES

    _, arguments = config.split_dataset_arguments()
    labels = {name: getattr(config, name) for name in ("image_label", "text_label", "url_label")}
    channels = config.imagen.channels
    if channels in MODES and channels != 3 and "convert_image_to_type" not in arguments:
        arguments = {"channels": channels, **arguments}
    arguments = {"image_size": image_size, **{name: value for name, value in labels.items() if value}, **arguments}
    frames = config.imagen.video_frames if config.imagen.video and "num_frames" not in arguments else None
    if frames is None:
        return open_source(config.dataset_name, **arguments)
    try:
        return open_source(config.dataset_name, num_frames=frames, **arguments)
    except (DataError, TypeError) as no_clips:
        try:
            return open_source(config.dataset_name, **arguments)
        except DataError:
            raise no_clips from None


def _readable(config: TrainingConfig, image_size: tuple[int, int]) -> tuple[Dataset, str, bool]:
    """The data set of a configuration, "image" or "clip" for its items, and whether they have captions.

    Raises:
        click.UsageError: the model makes images and the data are clips.
        CommandFailed: nothing in it can be read.
    """
    dataset = _opened(config, image_size)
    try:
        first = dataset[0]
    except (OSError, IndexError) as error:
        reason = format_error(error)
        raise CommandFailed(f"cannot read the first item of {config.dataset_name}: {reason}", DATA) from error
    noun = noun_of(first)
    if noun == "clip" and not config.imagen.video:
        raise click.UsageError(
            f"{config.dataset_name} holds clips and this is a model of images: one of videos is described with "
            '"video": true in "imagen", as in the ready-made configuration moving-digits (--config moving-digits)'
        )
    return dataset, noun, caption_of(first) is not None


def open_data(config: TrainingConfig, image_size: tuple[int, int]) -> Dataset:
    """The data set of a configuration, fit for its model.

    Args:
        config: with ``dataset_name`` and ``dataset``.
        image_size: (height, width) of the largest stage that is trained.

    Raises:
        click.UsageError: the model takes captions and the data have none, or it makes images and the data are clips.
        CommandFailed: nothing in it can be read.
    """
    dataset, noun, captioned = _readable(config, image_size)
    if captioned and not config.imagen.condition_on_text:
        return _WithoutCaptions(dataset)
    if not captioned and config.imagen.condition_on_text:
        raise _no_captions(config, noun, dataset)
    return dataset


def _no_captions(config: TrainingConfig, noun: str, dataset: Dataset) -> click.UsageError:
    unread = getattr(dataset, "near_misses", ())
    cure = "; ".join(unread) if unread else f"write each into a .txt file beside its {noun}"
    return click.UsageError(
        f"the {noun}s of {config.dataset_name} have no captions, and the model needs them: {cure}; or train a model "
        'with "condition_on_text": false in "imagen"'
    )


def open_or_adapt(config: TrainingConfig, image_size: tuple[int, int]) -> tuple[Dataset, TrainingConfig]:
    """The data set of a configuration, and the configuration: without text where the data have no captions.

    Args and errors as for `open_data`; captions are missing only where something looks like them and is not read.
    """
    dataset, noun, captioned = _readable(config, image_size)
    if not captioned and config.imagen.condition_on_text:
        if getattr(dataset, "near_misses", ()):
            raise _no_captions(config, noun, dataset)
        return dataset, without_text(config)
    if not captioned:
        return dataset, config
    return dataset if config.imagen.condition_on_text else _WithoutCaptions(dataset), config


def without_text(config: TrainingConfig) -> TrainingConfig:
    """The configuration of the same model without captions."""
    model = config.imagen.model_copy(update={"condition_on_text": False})
    return config.model_copy(update={"imagen": model, "sample_texts": []})


def stage_size(config: TrainingConfig, number: int) -> tuple[int, int]:
    """(height, width) of the images of a U-Net (1-based)."""
    from ..images import as_size

    sizes, count = config.imagen.image_sizes, len(config.imagen.unets)
    if isinstance(sizes, int) or (count == 1 and len(sizes) == 2):
        return as_size(sizes)
    return as_size(sizes[number - 1])


def with_clip_length(config: TrainingConfig, dataset: Dataset) -> TrainingConfig:
    """The configuration with a video model whose length and frame rate, unless stated, are those of its data."""
    first = dataset[0]
    if not config.imagen.video or noun_of(first) != "clip":
        return config
    data = {"video_frames": images_of(first).shape[1], "fps": first.get("fps")}
    given = config.imagen.model_fields_set
    new = {name: value for name, value in data.items() if value is not None and name not in given}
    return config.model_copy(update={"imagen": config.imagen.model_copy(update=new)})
