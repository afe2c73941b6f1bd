"""Folders of this machine and of all file systems of fsspec; their files are named by relative paths."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..io.files import open_url
from .decoding import printable, reason_of
from .local_folder import LocalFolder, Place, bounded
from .skipping import DataError
from .trouble import retry

#: Largest number of bytes of a fetched file.
MAX_FILE_BYTES = 2**28

#: Number of small files that are fetched in parallel.
AT_ONCE = 1000

#: Errors that a further attempt would not change.
FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, NotImplementedError)

#: Keys of file systems for values that change with the contents of a file.
STAMPS = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "modified")


class NoFileSystem(DataError):
    """A URL that no file system can open: a misspelt protocol, or arguments that do not fit it."""


class PackageMissing(ImportError):
    """A URL whose file system needs a package that is not installed."""


class RemoteFolder(Place):
    """A folder of any file system of fsspec.

    Opening only lists the folder. Files are fetched as a whole when they are read, and only then damage is found.

    Args:
        url: of the folder.
        make: returns the file system and its spelling of the folder; called once in every process, because connections
            do not survive a fork.

    Raises:
        DataError: the folder is empty or missing, or cannot be listed.
    """

    is_local = False

    def __init__(self, url: str, make: Callable[[], tuple[Any, str]]) -> None:
        self.url, self._make = url.rstrip("/"), make
        self._own: tuple[int, Any] | None = None
        self.unreadable = {}
        self.root = make()[1].rstrip("/")
        try:
            self.fs.invalidate_cache()
            found = self._ask(lambda: self.fs.find(self.root, detail=True), str(self))
        except OSError as error:
            raise DataError(f"cannot list {self}: {reason_of(error)}") from error
        self._sizes: dict[str, int | None] = {}
        self._stamps: dict[str, str | None] = {}
        for key, info in found.items():
            path = key.removeprefix(f"{self.root}/" if self.root else "/")
            inside = not self.root or path != key
            if inside and info.get("type", "file") == "file" and not {"", ".", ".."} & set(path.split("/")):
                self._sizes[path] = info.get("size")
                self._stamps[path] = next((f"{name} {info[name]}" for name in STAMPS if info.get(name)), None)
        if not self._sizes:
            raise DataError(f"the folder {self} does not exist, or is empty")

    def __str__(self) -> str:
        return printable(self.url)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_own": None}

    @property
    def fs(self) -> Any:
        """File system, created again in every process."""
        if self._own is None or self._own[0] != os.getpid():
            self._own = os.getpid(), self._make()[0]
        return self._own[1]

    def _ask(self, call: Callable[[], Any], what: str) -> Any:
        """Retry a call. File systems have exceptions of their own for lost connections: all but definite ones are
        retried."""
        return retry(call, what, lambda error: not isinstance(error, FINAL))

    def _key(self, path: Path) -> str:
        return f"{self.root}/{path.as_posix()}" if self.root else path.as_posix()

    def _walk(self) -> Iterator[str]:
        return (path for path in self._sizes if not any(part.startswith(".") for part in path.split("/")))

    def named(self, stem: str) -> list[Path]:
        """Return the files of that name, with any ending."""
        return sorted(Path(path) for path in self._sizes if "/" not in path and path.lower().startswith(f"{stem}."))

    def exists(self, path: Path) -> bool:
        """Return true if there is a file of that name."""
        return path.as_posix() in self._sizes

    def size(self, path: Path) -> int | None:
        """Return the bytes of a file, if the listing has them."""
        return self._sizes.get(path.as_posix())

    def at(self, path: Path) -> str:
        """Return the URL of a file."""
        return f"{self.url}/{path.as_posix()}" if path.parts else self.url

    def source(self, path: Path) -> bytes:
        """Return all bytes of a file.

        Raises:
            OSError: it cannot be fetched.
        """
        return self._ask(lambda: self.fs.cat_file(self._key(path)), printable(self.at(path)))

    def texts(self, paths: Iterable[Path]) -> Iterator[tuple[Path, bytes | OSError]]:
        """Yield the contents of those small files that exist, fetched in parallel if the file system can."""
        there = [path for path in paths if path.as_posix() in self._sizes]
        for start in range(0, len(there), AT_ONCE):
            keys = {self._key(path): path for path in there[start : start + AT_ONCE]}
            contents = self._ask(partial(self.fs.cat, list(keys), on_error="return"), str(self))
            for key, path in keys.items():
                content = contents.get(key)
                if not isinstance(content, bytes):  # one more attempt, alone
                    try:
                        content = self.source(path)
                    except OSError as error:
                        content = error
                yield path, bounded(content)

    def check(self, path: Path) -> None:
        """Check that a file exists and is neither empty nor too large. Only its size is known."""
        if path.as_posix() not in self._sizes:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        size = self._sizes[path.as_posix()]
        if size == 0:
            raise OSError("empty file")
        if size is not None and size > MAX_FILE_BYTES:
            raise OSError(f"larger than {MAX_FILE_BYTES // 2**20} MiB")

    def outage(self) -> str | None:
        """Return the reason why nothing can be read: neither the folder nor its first and last file exists."""
        self.fs.invalidate_cache()
        known = (self.root, *(self._key(Path(path)) for path in (next(iter(self._sizes)), next(reversed(self._sizes)))))
        return None if any(self.fs.exists(key) for key in known if key) else "the folder does not answer"

    @property
    def identity(self) -> str:
        """URL of the folder."""
        return self.url

    def version(self, path: Path) -> str | None:
        """Return the listing's version of a file, or the time of its last change."""
        stamp = self._stamps.get(path.as_posix())
        return None if stamp is None else f"{self._sizes[path.as_posix()]} {stamp}"


def place_of(folder: str | Path, fs: Any = None, fs_kwargs: Mapping[str, Any] | None = None) -> Place:
    """Open a folder by its path or URL.

    Args:
        folder: a path of this machine, or a URL such as ``gs://bucket/images``.
        fs: a ready file system that contains the folder.
        fs_kwargs: arguments for creating the file system of the URL.

    Raises:
        DataError: it is missing or empty, or the protocol is unknown (`NoFileSystem`).
        PackageMissing: the file system needs a package that is not installed.
    """
    if fs is None and "://" not in str(folder):
        return LocalFolder(Path(os.path.expanduser(folder)))
    from fsspec.implementations.local import LocalFileSystem

    make = partial(_made, str(folder), dict(fs_kwargs or {})) if fs is None else partial(_copied, str(folder), fs)
    made, root = make()
    return LocalFolder(Path(root)) if isinstance(made, LocalFileSystem) else RemoteFolder(str(folder), make)


def _copied(url: str, fs: Any) -> tuple[Any, str]:
    """Return a new file system like this one, for a new process."""
    return type(fs)(*fs.storage_args, **fs.storage_options), str(fs._strip_protocol(url))


def _made(url: str, options: dict[str, Any]) -> tuple[Any, str]:
    try:
        return open_url(url, options)
    except ImportError as error:
        raise PackageMissing(f"{printable(url)} cannot be read without a package that is missing: {error}") from None
    except ValueError as error:
        raise NoFileSystem(f"{printable(url)} cannot be read: {error}") from None
