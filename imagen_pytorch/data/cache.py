"""Cache of decoded and resized images, each read once: in memory that worker processes share, or in a file."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import tempfile
import time
import warnings
import weakref
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from multiprocessing.context import get_spawning_popen
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from ..version import __version__
from ..wording import printable

#: Default fraction of the available memory for the images of one data set.
SHARE = 0.25

#: Fraction of the free disk space that a new cache file may take.
DISK_SHARE = 0.5

#: Seconds after which a cache file that no run has opened is removed.
UNUSED = 30 * 24 * 3600

#: Ending of cache files. Their stem is the digest of everything that their contents depend on.
ENDING = ".images"

#: Name of a cache file. No other file in its folder is ever changed.
NAME = re.compile(rf"[0-9a-f]{{64}}{re.escape(ENDING)}")

#: Bytes of the checksum of one image.
CHECKSUM = 4


def levels(image: Float[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
    """Round an image in [0, 1] to 256 levels."""
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)


def from_levels(image: UInt8[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Convert 256 levels to floats in [0, 1]."""
    return image.float() / 255


def available_memory() -> int:
    """Return the bytes of memory that are available on this machine, or in the container of this process.

    Linux reports them. On other systems it is a quarter of the total memory, or 0 if that is unknown too.
    """
    found = []
    with suppress(OSError, ValueError, IndexError):
        text = Path("/proc/meminfo").read_text(encoding="utf-8")
        found.append(int(text.split("MemAvailable:")[1].split()[0]) * 1024)
    with suppress(OSError, ValueError):  # control group, version 2; without a limit the first file holds "max"
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text(encoding="utf-8"))
        found.append(limit - int((group / "memory.current").read_text(encoding="utf-8")))
    if not found:
        with suppress(AttributeError, OSError, ValueError):
            found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4)
    return max(min(found, default=0), 0)


def _expanded(folder: str | Path) -> Path:
    """Return a folder with the user's home folder in place of "~".

    Raises:
        ValueError: an unknown user, or an unknown home folder.
    """
    path = os.path.expanduser(folder)
    if path.startswith("~"):
        raise ValueError('no such user, or no home folder, for "~"')
    return Path(path)


def usual_folder() -> Path:
    """Return the default folder of cache files: ``imagen_pytorch/images`` in the user's cache directory.

    Raises:
        ValueError: the folder is unknown.
    """
    return _expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "imagen_pytorch" / "images"


def digest_of(parts: Iterable[object]) -> str:
    """Return one digest of several values, each written as text."""
    made = hashlib.sha256()
    for part in parts:
        text = str(part).encode("utf-8", "surrogatepass")
        made.update(len(text).to_bytes(8, "little") + text)
    return made.hexdigest()


def check_share(share: float) -> None:
    """Check that a value is a fraction of the memory.

    Raises:
        ValueError: not a number from 0 to 1.
    """
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise ValueError(f"cache_memory_share must be a number from 0 (no cache) to 1, got {share!r}")


class ImageCache:
    """A cache of images of one shape as 256 levels, by number. A missing image is None. Any image may be dropped.

    All processes that a data set is passed to share one cache, whether they are forked or spawned. A copy of a data set
    gets an empty cache of its own. Every image has a checksum: images that two processes wrote at once, that a crash
    left incomplete, or that a disk has damaged, count as missing. Lack of memory or disk space raises nothing: the
    cache then stays as it is.

    Without a folder the images are kept in memory if all of them fit into ``share`` of what is available. Otherwise
    they are kept in a file of the user's cache directory if their version is known (``key``) and the disk has room,
    else as many as fit in memory. With a folder they are kept in a file there; a warning gives the reason if they
    cannot be. Such a file serves every run with the same data and may be deleted at any time. A file that no run has
    opened for 30 days is removed.

    Args:
        count: number of images.
        shape: (channels, height, width).
        share: fraction of the available memory; ranks on one machine divide it. 0: no cache.
        folder: for files; None: see above.
        key: returns the digest of everything that determines the images, or None if it is unknown and nothing can be
            kept in files; called only if there may be a file.

    Attributes:
        capacity: largest number of images; 0: no cache.

    Raises:
        ValueError: the fraction is not a number from 0 to 1.
    """

    def __init__(
        self,
        count: int,
        shape: tuple[int, int, int],
        share: float = SHARE,
        folder: str | Path | None = None,
        key: Callable[[], str | None] = lambda: None,
    ) -> None:
        check_share(share)
        self.count, self.shape, self.capacity = count, shape, 0
        self._size = int(np.prod(shape))
        self._path: Path | None = None
        self._file: int | None = None
        self._received: Any = None
        if not share or not hasattr(os, "pread"):
            return
        together = max(int(os.environ.get("LOCAL_WORLD_SIZE") or 1), 1)
        room = int(share * available_memory() / together) // (self._size + CHECKSUM)
        name = key() if folder is not None or room < count else None
        reason: object = "nothing tells these images from other versions of themselves"
        if name is not None:
            try:
                self._path = (usual_folder() if folder is None else _expanded(folder)) / f"{name}{ENDING}"
                self.capacity = count
                self._open()
            except (OSError, ValueError) as error:
                self._file, reason = None, getattr(error, "strerror", None) or error
        if self._file is None:
            if folder is not None:
                text = f"no images are kept in the cache_folder {printable(folder)}: {reason}; memory is used instead"
                warnings.warn(text, stacklevel=5)
            self._path, self.capacity = None, min(room, count)
            self._open_again()

    # -- the file, which may be one in memory -------------------------------------------------------------------------

    def _open(self) -> None:
        """Open the file, or create it, if the capacity is above 0.

        Raises:
            OSError: that is impossible.
            ValueError: an invalid path.
        """
        if self.capacity:
            self._keep(_in_memory() if self._path is None else _on_disk(self._path, self._bytes))
            os.ftruncate(self._file, self._bytes)  # type: ignore[arg-type]

    def _open_again(self) -> None:
        """Open the file if it was possible before. If it is no longer, the cache is off."""
        try:
            self._open()
        except (OSError, ValueError):
            self._file, self.capacity = None, 0

    def _keep(self, file: int) -> None:
        self._file = file
        weakref.finalize(self, os.close, file)

    @property
    def _bytes(self) -> int:
        return self.capacity * (CHECKSUM + self._size)

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "_file": None, "_received": None}
        if self._file is not None and self._path is None and get_spawning_popen() is not None:
            state["_received"] = DupFd(self._file)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        received, self._received = self._received, None
        if received is None:
            self._open_again()
        else:
            self._keep(received.detach())

    # -- images -------------------------------------------------------------------------------------------------------

    def get(self, index: int) -> UInt8[Tensor, "c h w"] | None:
        """Return an image, or None if it is missing."""
        if index >= self.capacity or self._file is None:
            return None
        try:
            checksum = os.pread(self._file, CHECKSUM, index * CHECKSUM)
            if not any(checksum):
                return None
            content = os.pread(self._file, self._size, self.capacity * CHECKSUM + index * self._size)
        except OSError:
            return None
        if len(content) != self._size or _checksum(content) != checksum:
            return None
        return torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(self.shape)

    def put(self, index: int, image: UInt8[Tensor, "c h w"]) -> None:
        """Keep an image, if there is room."""
        if index >= self.capacity or self._file is None:
            return
        content = image.contiguous().numpy().tobytes()
        with suppress(OSError):  # no memory, a full disk: it is read again the next time
            if os.pwrite(self._file, content, self.capacity * CHECKSUM + index * self._size) == self._size:
                os.pwrite(self._file, _checksum(content), index * CHECKSUM)

    def __contains__(self, index: int) -> bool:
        return self.get(index) is not None

    def kept(self) -> Bool[Tensor, " count"]:
        """Return a mask of the images in the cache."""
        found = torch.zeros(self.count, dtype=torch.bool)
        if self._file is not None:
            with suppress(OSError):
                sums = np.frombuffer(os.pread(self._file, self.capacity * CHECKSUM, 0), dtype="<u4")
                found[: len(sums)] = torch.from_numpy(sums != 0)
        return found


def _checksum(content: bytes) -> bytes:
    """Return the checksum of an image. It is never zero, which marks a missing image."""
    return (zlib.crc32(content) or 1).to_bytes(CHECKSUM, "little")


def _in_memory() -> int:
    """Return an unnamed file, in memory on Linux, else a temporary file that the system keeps in memory if it can."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("imagen_pytorch-images")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _on_disk(path: Path, size: int) -> int:
    """Open or create a file by its name.

    Raises:
        OSError: it cannot be opened, the disk has too little room, or the name belongs to a link or a special file.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        _remove_unused(path.parent)
        if size > DISK_SHARE * shutil.disk_usage(path.parent).free:
            raise OSError("the disk has too little room")
    file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(file)
        raise OSError(f"{path.name} is not a regular file with a single link")
    with suppress(OSError):
        os.utime(path)  # used today
    return file


def _remove_unused(folder: Path) -> None:
    """Remove the cache files of a folder that no run has opened for a long time."""
    for path in folder.iterdir():
        with suppress(OSError):
            if NAME.fullmatch(path.name) and path.lstat().st_mtime < time.time() - UNUSED:
                path.unlink()


def image_key(source: Iterable[object], size: tuple[int, int], channels: int) -> str:
    """Return the digest that names the cache of some images.

    Args:
        source: values that identify these images and their versions.
        channels: of the items.
    """
    from PIL import __version__ as decoder

    return digest_of((__version__, decoder, torch.__version__, *size, channels, *source))


def kept_of(dataset: Any) -> Bool[Tensor, " n"] | None:
    """Return a mask of the items of a data set that need not be read from their source any more.

    Args:
        dataset: a source of this package, or a ``Subset``, a ``ConcatDataset`` or another wrapper of such sources that
            has their items in their order.

    Returns:
        None if it is unknown, as for data sets of other packages.
    """
    own = getattr(dataset, "kept", None)
    if callable(own):
        return own()
    parts = getattr(dataset, "datasets", None)
    if parts is not None:
        each = [kept_of(part) for part in parts]
        return None if any(one is None for one in each) else torch.cat(each)  # type: ignore[arg-type]
    inner = getattr(dataset, "dataset", None)
    found = None if inner is None else kept_of(inner)
    if found is None:
        return None
    chosen = getattr(dataset, "indices", None)
    if chosen is not None:
        return found[torch.as_tensor(chosen, dtype=torch.long)]
    return found if len(found) == len(dataset) else None
