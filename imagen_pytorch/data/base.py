"""What every source of pictures has in common: sizes and modes made equal, the unreadable left out and counted."""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import pkgutil
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
from ..wording import printable
from .cache import ImageCache, from_levels, image_key, levels
from .decoding import check_pixels, pixels, reason_of
from .skipping import SHOWN, DataError, DataUnavailable, SharedTexts, Skipped, shown
from .trouble import again, unavailable

if TYPE_CHECKING:
    from PIL import Image

Batch = TypeVar("Batch")

#: Data sets with a name of their own. Any other name is a folder, or a data set of the hub.
SOURCES: Registry[Callable[..., TorchDataset]] = Registry("data set")

#: Places for different reasons of damage, and what counts for those that find none.
REASONS, OTHER = 254, 255

#: Items in a row that cannot be read before the source is asked whether it is there at all.
WALK = 3

#: Bytes of a reason that a worker process tells, at most.
REASON_LENGTH = 160


def check_known(what: str, name: object, known: Iterable[object]) -> None:
    """Refuse a name that is not among the known ones.

    Raises:
        ValueError: the message lists what is known.
    """
    known = tuple(known)
    if name not in known:
        words = tuple(map(str, known))
        raise ValueError(f"no {what} {name!r}; known: {', '.join(words)}{suggestion(name, words)}")


def words_of(value: str | Iterable[str] | None) -> tuple[str, ...]:
    """One word, several or none as a tuple, each once; a string may hold several with commas between them."""
    if value is None:
        return ()
    words = [word.strip() for word in value.split(",")] if isinstance(value, str) else value
    return tuple(dict.fromkeys(words))


def one_of(captions: Sequence[str]) -> str:
    """One of a picture's captions, drawn with torch's own generator."""
    return captions[int(torch.randint(len(captions), ()))] if len(captions) > 1 else captions[0]


def channels_of(mode: str | None) -> int:
    """The number of channels of a Pillow mode; three if there is none.

    Raises:
        ValueError: a mode that pictures of a model cannot have.
    """
    modes = {name: count for count, name in MODES.items()}
    if mode is None:
        return 3
    check_known("picture mode", mode, modes)
    return modes[mode]


def item_size(image_size: int | Size) -> Size:
    """The argument ``image_size`` of a data source as (height, width).

    Raises:
        ValueError: no positive whole numbers, or more pixels than an image may have.
    """
    try:
        size = as_size(image_size)
        check_pixels(size)
    except (OSError, ValueError) as error:
        raise ValueError(f"image_size: {error}") from None
    return size


def fit(image: Float[Tensor, "c h w"], size: Size) -> Float[Tensor, "c h2 w2"]:
    """Resize a picture until it just covers ``size`` and cut out its middle.

    With an alpha channel (2 or 4 channels), colours count as much as they are opaque.
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


class PictureDataset(TorchDataset):
    """Pictures of one size and one number of channels, in a fixed order, each alone or with a caption.

    A picture that turns out to be unreadable is replaced by the next readable one, named in a warning and listed in
    ``skipped``, also when a worker process meets it. Items are a tensor ``(c, h, w)`` in [0, 1], or such a tensor and a
    caption; of several captions one is drawn, and a flip is drawn, with torch's own generator. After resizing, values
    are rounded to the 256 levels of 8 bits, so that an image that comes from the cache is the one that was read.

    Args:
        count: number of pictures.
        image_size: side in pixels, or (height, width); a picture is resized to cover it and its middle is cut out.
        channels: 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA; any other mode is converted.
        random_flip: mirror every other picture.
        cache_memory_share: share of the available memory for images that have been read; 0 reads them anew each time.
        cache_folder: keep them in files there instead, which later runs use too; see `ImageCache`.

    Raises:
        ValueError: a size or a number of channels that pictures cannot have, or no share.
    """

    #: What one item is called in messages.
    kind = "picture"

    #: Whether items can be read by a forked process as well: nothing is open, and no GPU is used. Where it is true and
    #: reading takes long, a trainer starts such processes by itself.
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
        # shared with worker processes, so that what they find is known here: 0 is fine, else a reason's place plus one
        self._bad = torch.zeros(count, dtype=torch.uint8).share_memory_()
        self._reasons = SharedTexts(REASONS, REASON_LENGTH)
        self._left_out: list[Skipped] = []
        self._warned = 0

    def __len__(self) -> int:
        return self.count

    @abstractmethod
    def name(self, index: int) -> str:
        """What to call a picture in messages."""

    @abstractmethod
    def read(self, index: int) -> tuple[Image.Image, tuple[str, ...]]:
        """A picture and its captions; no caption if the data have none.

        Raises:
            OSError: it cannot be read.
        """

    def captions_at(self, index: int) -> tuple[str, ...]:
        """The captions that `read` would give, where they can be had without the picture."""
        return self.read(index)[1]

    def identity(self) -> Iterator[str]:
        """The names of the pictures, in their order: what tells one data set from another."""
        return map(self.name, range(self.count))

    def _versions(self) -> Iterable[object] | None:
        """What tells the pictures, and their present contents, from all others; None if that is unknown."""
        return None

    def _cache_key(self) -> str | None:
        found = self._versions()
        return None if found is None else image_key(found, self.size, self.channels)

    def kept(self) -> Bool[Tensor, " count"]:
        """Which pictures need not be read any more: those in the cache, and those that are left out."""
        return self.cache.kept() | (self._bad != 0)

    @property
    def skipped(self) -> list[Skipped]:
        """What was left out so far, and why."""
        found = torch.nonzero(self._bad).flatten().tolist()
        return [*self._left_out, *(Skipped(self.name(index), self._reason(index)) for index in found)]

    @property
    def found(self) -> int:
        """How many there are, those included that are left out."""
        return self.count + len(self._left_out)

    def _reason(self, index: int) -> str:
        code = int(self._bad[index])
        return "cannot be read" if code == OTHER else self._reasons[code - 1]

    def _mark(self, index: int, reason: str) -> None:
        """Leave a picture out from now on; only the first few are warned of."""
        place = self._reasons.add(reason)
        self._bad[index] = OTHER if place is None else place + 1
        self._warned += 1
        if self._warned <= SHOWN:
            more = "; further ones are only listed, in skipped" if self._warned == SHOWN else ""
            warnings.warn(f"{self.name(index)} cannot be read and is left out: {reason}{more}", stacklevel=4)

    def leave_out(self, skipped: list[Skipped], of: str) -> None:
        """List pictures as left out, with one warning that names a few."""
        self._left_out += skipped
        if skipped:
            verb = "is" if len(skipped) == 1 else "are"
            text = f"{len(skipped)} of the {self.kind}s in {of} {verb} left out: {shown(skipped)}"
            warnings.warn(text, stacklevel=4)

    def _fitted(self, picture: Image.Image) -> Float[Tensor, "c h w"]:
        return fit(pixels(picture, self.channels), self.size)

    def _mirrored(self, image: Tensor) -> Tensor:
        return image.flip(-1) if self.random_flip and torch.rand(()) < 0.5 else image

    def _pixels(self, index: int) -> tuple[UInt8[Tensor, "c h w"], tuple[str, ...]]:
        """A picture in its final size, from the cache if it is there, and its captions."""
        kept = self.cache.get(index)
        if kept is not None:
            return kept, self.captions_at(index)
        picture, captions = self.read(index)
        image = levels(self._fitted(picture))
        self.cache.put(index, image)
        return image, captions

    def _load(self, index: int) -> Tensor | tuple[Tensor, str] | dict[str, Any]:
        pixels, captions = self._pixels(index)
        image = self._mirrored(from_levels(pixels))
        return (image, one_of(captions)) if captions else image

    def _load_afresh(self, index: int, dice: Tensor) -> Tensor | tuple[Tensor, str] | dict[str, Any]:
        """An item; after a failure the state of the generator is as before, so no draw depends on what went wrong."""
        try:
            return self._load(index)
        except (OSError, MemoryError, DataUnavailable):
            torch.set_rng_state(dice)
            raise

    def silence(self) -> str | None:
        """Why nothing can be read at present; None if the source answers."""
        return None

    def _mark_all(self, failed: dict[int, str], answered: bool = False) -> None:
        """Leave out what could not be read, if the source answers; ``failed`` is empty afterwards.

        Raises:
            DataUnavailable: the source does not answer, so nothing is known about its files.
        """
        if failed and not answered and (reason := self.silence()):
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
            read = not failed or position not in self.cache  # what comes from the cache says nothing about the source
            try:
                item = again(functools.partial(self._load_afresh, position, dice), self.name(position))
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
    """Yield a loader's batches again and again.

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


@functools.cache
def _discover() -> None:
    package = __name__.rpartition(".")[0]
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{module.name}")


def check_arguments(source: Callable[..., Any], name: str, given: Iterable[str]) -> None:
    """Refuse arguments that a data source does not take.

    Raises:
        TypeError: the message lists those that it takes.
    """
    known = tuple(key for key in inspect.signature(source).parameters if key not in ("folder", "name", "self"))
    for key in given:
        if key not in known:
            raise TypeError(f'{name} takes no argument "{key}"; it takes: {", ".join(known)}{suggestion(key, known)}')


def open_source(
    name: str,
    *,
    image_label: str | None = None,
    text_label: str | None = None,
    url_label: str | None = None,
    **arguments: Any,
) -> TorchDataset:
    """The data set that a configuration names.

    Args:
        name: "emoji64", "moving-digits", a folder (a path or a URL such as ``gs://bucket/pictures``), or a data set of
            the hub. A folder is one of clips if there are ``num_frames``, and of pictures otherwise.
        image_label, text_label, url_label: columns of a data set of the hub. A folder has at most a column of captions
            (``text_label``, in its metadata file); embedded data have none and ignore them.
        arguments: of the data source (`Emoji64`, `MovingDigits`, `Dataset`, `VideoDataset` or `hub_dataset`).

    Raises:
        DataError: nothing readable in it.
        FileNotFoundError: nothing of that name.
        TypeError: an argument that the source does not take.
        ImportError: the name looks like a data set of the hub, and the datasets library is not installed; or the file
            system of a URL needs a package that is not.
    """
    _discover()
    from .clips import VideoDataset
    from .folder import Dataset
    from .huggingface import hub_dataset

    labels = {"image_label": image_label, "text_label": text_label, "url_label": url_label}
    if name in SOURCES:
        source, labels = SOURCES[name], {}
    elif "://" in name or os.path.isdir(os.path.expanduser(name)):
        of = Dataset if arguments.get("num_frames") is None else VideoDataset
        source, labels = functools.partial(of, os.path.expanduser(name)), {"text_label": text_label}
    else:
        if os.path.isfile(os.path.expanduser(name)):
            raise DataError(f"{printable(name)} is a file; data are a folder, or a data set by its name")
        source = functools.partial(hub_dataset, name)
    check_arguments(source, name, arguments)
    return source(**{key: value for key, value in labels.items() if value is not None}, **arguments)
