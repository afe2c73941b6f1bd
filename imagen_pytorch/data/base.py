"""The common part of all image sources: one size and mode for all, unreadable images left out and counted."""

from __future__ import annotations

import functools
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from ..images import MODES, Size, as_size, resize
from ..registry import Registry, suggestion
from ..renamed import renamed
from .cache import ImageCache, from_levels, image_key, levels
from .decoding import check_pixels, pixels, reason_of
from .skipping import SHOWN, DataError, DataUnavailable, SharedTexts, Skipped, summarize
from .trouble import retry, unavailable

if TYPE_CHECKING:
    from PIL import Image

Batch = TypeVar("Batch")

#: Data sets with a name of their own. All other names are folders, or data sets of the hub.
SOURCES: Registry[Callable[..., TorchDataset]] = Registry("data set")

#: Number of different reasons of damage that are kept, and the code for all others.
REASONS, OTHER = 254, 255

#: Number of consecutive unreadable items after which the source is checked.
WALK = 3

#: Largest number of bytes of a reason from a worker process.
REASON_LENGTH = 160


def check_known(what: str, name: object, known: Iterable[object]) -> None:
    """Check that a name is among the known ones.

    Raises:
        ValueError: lists the known ones.
    """
    known = tuple(known)
    if name not in known:
        words = tuple(map(str, known))
        raise ValueError(f"no {what} {name!r}; known: {', '.join(words)}{suggestion(name, words)}")


def split_names(value: str | Iterable[str] | None) -> tuple[str, ...]:
    """Return one word, several or none as a tuple, each once. A string may hold several, separated by commas."""
    if value is None:
        return ()
    words = [word.strip() for word in value.split(",")] if isinstance(value, str) else value
    return tuple(dict.fromkeys(words))


def random_caption(captions: Sequence[str]) -> str:
    """Draw one of an image's captions with torch's own generator."""
    return captions[int(torch.randint(len(captions), ()))] if len(captions) > 1 else captions[0]


def channels_of(mode: str | None) -> int:
    """Return the number of channels of a Pillow mode, or three without a mode.

    Raises:
        ValueError: a mode that images of a model cannot have.
    """
    modes = {name: count for count, name in MODES.items()}
    if mode is None:
        return 3
    check_known("image mode", mode, modes)
    return modes[mode]


def item_size(image_size: int | Size) -> Size:
    """Return the argument ``image_size`` of a data source as (height, width).

    Raises:
        ValueError: not positive integers, or more pixels than an image may have.
    """
    try:
        size = as_size(image_size)
        check_pixels(size)
    except (OSError, ValueError) as error:
        raise ValueError(f"image_size: {error}") from None
    return size


def fit(image: Float[Tensor, "c h w"], size: Size) -> Float[Tensor, "c h2 w2"]:
    """Resize an image to just cover ``size`` and crop its centre.

    With an alpha channel (2 or 4 channels), colours are weighted by their opacity.
    """
    height, width = image.shape[-2:]
    scale = max(size[0] / height, size[1] / width)
    cover = (max(size[0], round(height * scale)), max(size[1], round(width * scale)))
    if len(image) in (2, 4):
        colour, alpha = image[:-1], image[-1:]
        shrunk = resize(torch.cat([colour * alpha, alpha])[None], cover)[0]
        image = torch.cat([shrunk[:-1] / shrunk[-1:].clamp(min=1e-4), shrunk[-1:]]).clamp(0, 1)
    else:
        image = resize(image[None], cover)[0]
    top, left = (cover[0] - size[0]) // 2, (cover[1] - size[1]) // 2
    return image[:, top : top + size[0], left : left + size[1]].contiguous()


class ImageDataset(TorchDataset):
    """Images of one size and one number of channels, in a fixed order, each alone or with a caption.

    An unreadable image is replaced by the next readable one, named in a warning and listed in ``skipped``, also if a
    worker process finds it. Items are a tensor ``(c, h, w)`` in [0, 1], or such a tensor and a caption. One of several
    captions, and a flip, are drawn with torch's own generator. After resizing, values are rounded to the 256 levels of
    8 bits, so that an image from the cache equals the one that was read.

    Args:
        count: number of images.
        image_size: side in pixels, or (height, width); an image is resized to cover it and its centre is cropped.
        channels: 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA; any other mode is converted.
        random_flip: flip images horizontally with probability 1/2.
        cache_memory_share: fraction of the available memory for images that have been read; 0 reads them each time.
        cache_folder: keep them in files there instead, which later runs use too; see `ImageCache`.

    Raises:
        ValueError: a size or a number of channels that images cannot have, or not a fraction.
    """

    #: Name of an item in messages.
    kind = "image"

    #: True to get images as uint8 in 0..255, which is a fourth of the bytes between processes and to a GPU. Training
    #: converts them there, to the same numbers. Clips are always floats.
    as_uint8 = False

    #: True if items can be read by a forked process as well: nothing is open, and no GPU is used. If reading also takes
    #: long, a trainer starts such processes by itself.
    any_process = False

    def __init__(
        self,
        count: int,
        image_size: int | Size,
        channels: int,
        random_flip: bool,
        cache_memory_share: float = 0.0,
        cache_folder: str | Path | None = None,
    ) -> None:
        check_known("number of channels", channels, MODES)
        self.size, self.channels, self.random_flip = item_size(image_size), channels, random_flip
        self.count = count
        self.cache = ImageCache(count, (channels, *self.size), cache_memory_share, cache_folder, self._cache_key)
        # shared with worker processes, so that their findings are known here: 0 is fine, else the index of a reason
        # plus one
        self._bad = torch.zeros(count, dtype=torch.uint8).share_memory_()
        self._reasons = SharedTexts(REASONS, REASON_LENGTH)
        self._left_out: list[Skipped] = []
        self._warned = 0

    def __len__(self) -> int:
        return self.count

    @abstractmethod
    def name(self, index: int) -> str:
        """Return the name of an image for messages."""

    @abstractmethod
    def read(self, index: int) -> tuple[Image.Image, tuple[str, ...]]:
        """Return an image and its captions; no caption if the data have none.

        Raises:
            OSError: it cannot be read.
        """

    def captions_at(self, index: int) -> tuple[str, ...]:
        """Return the captions of `read`, without the image where possible."""
        return self.read(index)[1]

    def identity(self) -> Iterator[str]:
        """Return the names of the images, in their order, which identify the data set."""
        return map(self.name, range(self.count))

    def _versions(self) -> Iterable[object] | None:
        """Return values that identify the images and their present contents, or None if these are unknown."""
        return None

    def _cache_key(self) -> str | None:
        found = self._versions()
        return None if found is None else image_key(found, self.size, self.channels)

    def kept(self) -> Bool[Tensor, " count"]:
        """Return a mask of the images that need not be read any more: those in the cache, and those that are left
        out."""
        return self.cache.kept() | (self._bad != 0)

    @property
    def skipped(self) -> list[Skipped]:
        """Items that were left out so far, with the reasons."""
        found = torch.nonzero(self._bad).flatten().tolist()
        return [*self._left_out, *(Skipped(self.name(index), self._reason(index)) for index in found)]

    @property
    def found(self) -> int:
        """Number of all items, including those that are left out."""
        return self.count + len(self._left_out)

    def _reason(self, index: int) -> str:
        code = int(self._bad[index])
        return "cannot be read" if code == OTHER else self._reasons[code - 1]

    def _mark(self, index: int, reason: str) -> None:
        """Leave an image out from now on. Only the first few are reported by a warning."""
        place = self._reasons.add(reason)
        self._bad[index] = OTHER if place is None else place + 1
        self._warned += 1
        if self._warned <= SHOWN:
            more = "; further ones are only listed, in skipped" if self._warned == SHOWN else ""
            warnings.warn(f"{self.name(index)} cannot be read and is left out: {reason}{more}", stacklevel=4)

    def leave_out(self, skipped: list[Skipped], of: str) -> None:
        """List images as left out, with one warning that names a few."""
        self._left_out += skipped
        if skipped:
            verb = "is" if len(skipped) == 1 else "are"
            text = f"{len(skipped)} of the {self.kind}s in {of} {verb} left out: {summarize(skipped)}"
            warnings.warn(text, stacklevel=4)

    def _fitted(self, pil_image: Image.Image) -> Float[Tensor, "c h w"]:
        return fit(pixels(pil_image, self.channels), self.size)

    def _mirrored(self, image: Tensor) -> Tensor:
        return image.flip(-1) if self.random_flip and torch.rand(()) < 0.5 else image

    def _pixels(self, index: int) -> tuple[UInt8[Tensor, "c h w"], tuple[str, ...]]:
        """Return an image in its final size, from the cache if it is there, and its captions."""
        kept = self.cache.get(index)
        if kept is not None:
            return kept, self.captions_at(index)
        pil_image, captions = self.read(index)
        image = levels(self._fitted(pil_image))
        self.cache.put(index, image)
        return image, captions

    def _load(self, index: int) -> Tensor | tuple[Tensor, str] | dict[str, Any]:
        pixels, captions = self._pixels(index)
        image = self._mirrored(pixels if self.as_uint8 else from_levels(pixels))
        return (image, random_caption(captions)) if captions else image

    def _load_afresh(self, index: int, dice: Tensor) -> Tensor | tuple[Tensor, str] | dict[str, Any]:
        """Load an item. A failure restores the state of the generator, so that no draw depends on it."""
        try:
            return self._load(index)
        except (OSError, MemoryError, DataUnavailable):
            torch.set_rng_state(dice)
            raise

    def outage(self) -> str | None:
        """Return the reason why nothing can be read at present, or None if the source answers."""
        return None

    def _mark_all(self, failed: dict[int, str], answered: bool = False) -> None:
        """Leave out unreadable items, if the source answers. ``failed`` is empty afterwards.

        Raises:
            DataUnavailable: the source does not answer, so nothing is known about its files.
        """
        if failed and not answered and (reason := self.outage()):
            raise unavailable(", ".join(map(self.name, failed)), reason)
        for position, reason in failed.items():
            self._mark(position, reason)
        failed.clear()

    def __getitem__(self, index: int) -> Tensor | tuple[Tensor, str] | dict[str, Any]:
        if not -self.count <= index < self.count:
            raise IndexError(f"there are {self.count} {self.kind}s, got index {index}")
        dice = torch.get_rng_state()
        failed: dict[int, str] = {}
        for step in range(self.count):
            position = (index + step) % self.count
            if self._bad[position]:
                continue
            read = not failed or position not in self.cache  # the cache does not show that the source answers
            try:
                item = retry(functools.partial(self._load_afresh, position, dice), self.name(position))
            except OSError as error:
                failed[position] = reason_of(error)
                if len(failed) == WALK:
                    self._mark_all(failed)
                continue
            self._mark_all(failed, answered=read)
            return item
        self._mark_all(failed)
        first = f"{self.name(0)}: {self._reason(0)}"
        raise DataError(f"none of the {self.count} {self.kind}s can be read; the first is {first}")


def cycle(loader: Iterable[Batch]) -> Iterator[Batch]:
    """Yield a loader's batches endlessly.

    Raises:
        DataError: the loader has no batch.
    """
    while True:
        empty = True
        for batch in loader:
            empty = False
            yield batch
        if empty:
            raise DataError("the loader yields no batch: the data set is empty, or smaller than a batch with drop_last")


__getattr__ = renamed(__name__, {"PictureDataset": "ImageDataset"})
