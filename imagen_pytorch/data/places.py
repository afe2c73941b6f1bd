"""Folders of this machine and of any file system that fsspec knows; what is in them goes by its relative path."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..registry import no_file_system
from .decoding import printable, reason_of
from .local_folder import LocalFolder, Place, bounded
from .skipping import DataError
from .trouble import again

#: Bytes of a file that is fetched, at most.
LARGEST_FILE = 2**28

#: Small files that are fetched side by side.
AT_ONCE = 1000

#: What asking again would not change.
FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, NotImplementedError)

#: What file systems call that which changes with the contents of a file.
STAMPS = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "modified")

#: Packages that make file systems available, by protocol.
PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "s3a": "s3fs"}


class NoFileSystem(DataError):
    """A URL that no file system can open: a misspelt protocol, or arguments that do not fit it."""


class PackageMissing(ImportError):
    """A URL whose file system needs a package that is not installed."""


class RemoteFolder(Place):
    """A folder of any file system that fsspec knows.

    Listing is all that happens on opening: files are fetched whole when they are read, and only then damage is found.

    Args:
        url: of the folder.
        make: the file system and how it spells the folder; called once in every process, because connections do not
            survive a fork.

    Raises:
        DataError: nothing is there, or it cannot be listed.
    """

    near = False

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
            raise DataError(f"there is no folder {self}, or nothing is in it")

    def __str__(self) -> str:
        return printable(self.url)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_own": None}

    @property
    def fs(self) -> Any:
        """The file system, made anew in every process."""
        if self._own is None or self._own[0] != os.getpid():
            self._own = os.getpid(), self._make()[0]
        return self._own[1]

    def _ask(self, call: Callable[[], Any], what: str) -> Any:
        """Every file system has exceptions of its own for a connection that fails: all but clear answers may pass."""
        return again(call, what, lambda error: not isinstance(error, FINAL))

    def _key(self, path: Path) -> str:
        return f"{self.root}/{path.as_posix()}" if self.root else path.as_posix()

    def _walk(self) -> Iterator[str]:
        return (path for path in self._sizes if not any(part.startswith(".") for part in path.split("/")))

    def named(self, stem: str) -> list[Path]:
        """The files of that name, whatever their ending."""
        return sorted(Path(path) for path in self._sizes if "/" not in path and path.lower().startswith(f"{stem}."))

    def exists(self, path: Path) -> bool:
        """Whether there is a file of that name."""
        return path.as_posix() in self._sizes

    def size(self, path: Path) -> int | None:
        """Bytes of a file, if the listing tells them."""
        return self._sizes.get(path.as_posix())

    def at(self, path: Path) -> str:
        """A file's URL."""
        return f"{self.url}/{path.as_posix()}" if path.parts else self.url

    def source(self, path: Path) -> bytes:
        """All bytes of a file.

        Raises:
            OSError: it cannot be fetched.
        """
        return self._ask(lambda: self.fs.cat_file(self._key(path)), printable(self.at(path)))

    def texts(self, paths: Iterable[Path]) -> Iterator[tuple[Path, bytes | OSError]]:
        """The contents of those small files that exist, fetched side by side where the file system can."""
        there = [path for path in paths if path.as_posix() in self._sizes]
        for start in range(0, len(there), AT_ONCE):
            keys = {self._key(path): path for path in there[start : start + AT_ONCE]}
            contents = self._ask(partial(self.fs.cat, list(keys), on_error="return"), str(self))
            for key, path in keys.items():
                content = contents.get(key)
                if not isinstance(content, bytes):  # one more time, alone
                    try:
                        content = self.source(path)
                    except OSError as error:
                        content = error
                yield path, bounded(content)

    def check(self, path: Path) -> None:
        """See that a file is there and neither empty nor too large; only its size is known."""
        if path.as_posix() not in self._sizes:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        size = self._sizes[path.as_posix()]
        if size == 0:
            raise OSError("empty file")
        if size is not None and size > LARGEST_FILE:
            raise OSError(f"larger than {LARGEST_FILE // 2**20} MiB")

    def silence(self) -> str | None:
        """Why nothing can be read: neither the folder nor what was first and last in it is there."""
        self.fs.invalidate_cache()
        known = (self.root, *(self._key(Path(path)) for path in (next(iter(self._sizes)), next(reversed(self._sizes)))))
        return None if any(self.fs.exists(key) for key in known if key) else "the folder does not answer"

    @property
    def identity(self) -> str:
        """Its URL."""
        return self.url

    def version(self, path: Path) -> str | None:
        """What the file system's listing says about the contents of a file, or when they last changed."""
        stamp = self._stamps.get(path.as_posix())
        return None if stamp is None else f"{self._sizes[path.as_posix()]} {stamp}"


def place_of(folder: str | Path, fs: Any = None, fs_kwargs: Mapping[str, Any] | None = None) -> Place:
    """A folder by its path or URL.

    Args:
        folder: a path of this machine, or a URL such as ``gs://bucket/pictures``.
        fs: a ready file system that the folder is one of.
        fs_kwargs: arguments for making the file system that the URL names.

    Raises:
        DataError: there is none, nothing is in it, or no file system has the protocol's name (`NoFileSystem`).
        PackageMissing: the file system needs a package that is not installed.
    """
    if fs is None and "://" not in str(folder):
        return LocalFolder(Path(os.path.expanduser(folder)))
    from fsspec.implementations.local import LocalFileSystem

    make = partial(_made, str(folder), dict(fs_kwargs or {})) if fs is None else partial(_copied, str(folder), fs)
    made, root = make()
    return LocalFolder(Path(root)) if isinstance(made, LocalFileSystem) else RemoteFolder(str(folder), make)


def _copied(url: str, fs: Any) -> tuple[Any, str]:
    """A file system like this one, new in a new process."""
    return type(fs)(*fs.storage_args, **fs.storage_options), str(fs._strip_protocol(url))


def _made(url: str, options: dict[str, Any]) -> tuple[Any, str]:
    from fsspec import available_protocols
    from fsspec.core import url_to_fs

    protocol = url.partition("://")[0].split("::")[-1]
    try:
        return url_to_fs(url, **options)
    except ImportError as error:
        hint = f"pip install {PACKAGES[protocol]}" if protocol in PACKAGES else str(error)
        raise PackageMissing(f"{printable(url)} cannot be read without a package that is missing: {hint}") from None
    except ValueError as error:
        known = tuple(sorted(available_protocols()))
        is_known = any(part in known for part in (protocol, url.partition("://")[0]))
        reason = error if is_known else no_file_system(protocol, known)
        raise NoFileSystem(f"{printable(url)} cannot be read: {reason}") from None
