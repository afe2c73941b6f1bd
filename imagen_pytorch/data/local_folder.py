"""Local folders, and the interface of all folders: their files are named by relative paths."""

from __future__ import annotations

import io
import itertools
import os
import re
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from .decoding import check_file, printable, reason_of
from .skipping import DataError
from .trouble import is_trouble, retry

#: Largest number of bytes of the captions of one image.
MAX_TEXT_BYTES = 2**20

#: Largest number of bytes of a table of captions.
MAX_TABLE_BYTES = 2**30

#: Levels of subfolders that are searched; deeper ones are listed as left out.
DEEPEST = 100

#: The file in which our commands list what they wrote into its folder, and its largest number of bytes.
OUTPUTS, LARGEST_LIST = ".imagen-outputs", 2**26

#: Files that earlier versions wrote into a folder with ``metrics.jsonl``.
USUAL_OUTPUTS = re.compile(r"(loss(-[0-9]+)?\.png|sample-[0-9]+(-unet[0-9]+)?(-[0-9]+)?\.[^.]+)")


class Place(ABC):
    """A folder.

    Attributes:
        is_local: true if reading every file on opening is fast.
        unreadable: subfolders that cannot be read, with reasons; known after listing.
        outputs: number of files that our commands wrote there, which are ignored; known after listing.
    """

    is_local: bool
    unreadable: dict[Path, str]
    outputs: int = 0
    _files: list[str] | None = None

    def listed(self, extensions: Sequence[str]) -> list[Path]:
        """Return the relative paths of files with these endings, in any case of letters, in a fixed order."""
        endings = tuple(f".{ending.lower().lstrip('.')}" for ending in extensions)
        return sorted((path for path in map(Path, self.files()) if path.suffix.lower() in endings), key=Path.as_posix)

    def files(self) -> list[str]:
        """Return the relative paths of all files except hidden ones and outputs of our commands, in any order.
        Cached."""
        if self._files is None:
            self._files = list(self._walk())
        return self._files

    def forget(self) -> None:
        """Free the memory of the list of files, which is made again when needed."""
        self._files = None

    @abstractmethod
    def _walk(self) -> Iterable[str]:
        """Yield all files."""

    @abstractmethod
    def named(self, stem: str) -> list[Path]:
        """Return the files of that name in the folder itself, with any ending, sorted."""

    @abstractmethod
    def exists(self, path: Path) -> bool:
        """Return true if there is a file, or a link, of that name."""

    @abstractmethod
    def size(self, path: Path) -> int | None:
        """Return the bytes of a file, or None if unknown.

        Raises:
            OSError: it is missing.
        """

    @abstractmethod
    def at(self, path: Path) -> Path | str:
        """Return the complete path or URL of a file."""

    @abstractmethod
    def source(self, path: Path) -> Path | bytes:
        """Return what a file is read from: its path, or all of its bytes.

        Raises:
            OSError: it cannot be fetched.
        """

    @abstractmethod
    def texts(self, paths: Iterable[Path]) -> Iterator[tuple[Path, bytes | OSError]]:
        """Yield the contents of those small files that exist."""

    @abstractmethod
    def check(self, path: Path) -> None:
        """Check that a file can be used, as far as possible without reading it.

        Raises:
            OSError: it cannot.
        """

    @abstractmethod
    def outage(self) -> str | None:
        """Return the reason why nothing in the folder can be read at present, or None if it answers."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """Name of the folder, equal for all spellings of its path."""

    @abstractmethod
    def version(self, path: Path) -> str | None:
        """Return a value that changes with the contents of a file, or None if there is none."""

    def lines(self, path: Path) -> Iterator[str]:
        """Yield the lines of a file as UTF-8 text, each with its end.

        Raises:
            OSError: it cannot be read, is larger than 1 GiB, or has a line of more than 1 Mi characters.
        """
        if (self.size(path) or 0) > MAX_TABLE_BYTES:
            raise OSError(f"larger than {MAX_TABLE_BYTES // 2**30} GiB; give each subfolder a table of its own")
        source = self.source(path)
        stream = io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")
        with io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as text:  # type: ignore[arg-type]
            for number in itertools.count(1):
                line = text.readline(MAX_TEXT_BYTES + 1)
                if len(line) > MAX_TEXT_BYTES:
                    raise OSError(f"line {number} is longer than {MAX_TEXT_BYTES // 2**20} Mi characters")
                if not line:
                    return
                yield line


class LocalFolder(Place):
    """A local folder.

    Links to files and folders are followed. A folder that is reached in several ways is searched once, so that a link
    to a folder above it adds nothing.

    Raises:
        DataError: it does not exist, or cannot be read.
    """

    is_local = True

    def __init__(self, root: Path) -> None:
        self.root = root
        self.unreadable = {}
        try:
            found = retry(root.is_dir, f"the folder {self}")
        except OSError as error:
            raise DataError(f"cannot look into {self}: {reason_of(error)}") from None
        if not found:
            raise DataError(f"the folder {self} does not exist")

    def __str__(self) -> str:
        return printable(self.root)

    def _walk(self) -> Iterator[str]:
        self.unreadable, self.outputs = {}, 0
        seen: set[tuple[int, int]] = set()
        folders, links = [""], []
        while folders or links:
            if not folders:
                links.sort(reverse=True)
                folders.append(links.pop())
            inside = folders.pop()
            try:
                if inside.count("/") > DEEPEST:
                    raise OSError(f"more than {DEEPEST} levels deep")
                identity, entries = retry(partial(_entries, self.root / inside, seen), f"the folder {self}")
                seen.add(identity)
                passed = retry(partial(_outputs, self.root / inside, entries), f"the folder {self}")
            except OSError as error:
                if not inside:
                    raise DataError(f"cannot look into {self}: {reason_of(error)}") from None
                self.unreadable[Path(inside)] = reason_of(error)
                continue
            for entry in entries:
                path = f"{inside}{entry.name}"
                if entry.name.startswith("."):
                    continue
                if _is_folder(entry):
                    (links if entry.is_symlink() else folders).append(f"{path}/")
                elif entry.name in passed:
                    self.outputs += 1
                # a broken link is listed: it is reported as missing later, and not ignored
                elif entry.is_symlink() or entry.is_file():
                    yield path

    def exists(self, path: Path) -> bool:
        """Return true if there is a file, a folder or a link of that name."""
        try:
            return os.path.lexists(self.root / path)
        except ValueError:  # an invalid file name
            return False

    def size(self, path: Path) -> int:
        """Return the bytes of a file."""
        return os.stat(self.root / path).st_size

    def named(self, stem: str) -> list[Path]:
        """Return the files of that name, with any ending."""
        return sorted(Path(path) for path in self.files() if "/" not in path and path.lower().startswith(f"{stem}."))

    def at(self, path: Path) -> Path:
        """Return the complete path of a file."""
        return self.root / path

    def source(self, path: Path) -> Path:
        """Return the path of a file.

        Raises:
            OSError: it is not a file, or empty.
        """
        check_file(self.root / path)
        return self.root / path

    def texts(self, paths: Iterable[Path]) -> Iterator[tuple[Path, bytes | OSError]]:
        """Yield the contents of those small files that exist."""
        for path in paths:
            try:
                content: bytes | OSError | None = retry(partial(_text, self.root / path), printable(path))
            except OSError as error:
                content = error
            if content is not None:
                yield path, bounded(content)

    def check(self, path: Path) -> None:
        """Check that it is a file that is not empty."""
        check_file(self.root / path)

    def outage(self) -> str | None:
        """Return the reason why nothing can be read: the folder is gone, or an empty one is in its place."""
        try:
            with os.scandir(self.root) as entries:
                return None if next(entries, None) else "nothing is in the folder any more"
        except OSError as error:
            return "the folder is gone" if isinstance(error, FileNotFoundError) else reason_of(error)

    @property
    def identity(self) -> str:
        """Real path of the folder."""
        return os.path.realpath(self.root)

    def version(self, path: Path) -> str | None:
        """Return size and modification time of a file."""
        try:
            found = os.stat(self.root / path)
        except OSError:
            return None
        return f"{found.st_size} {found.st_mtime_ns}"


def _entries(folder: Path, seen: set[tuple[int, int]]) -> tuple[tuple[int, int], list[os.DirEntry[str]]]:
    """Return the identity of a folder and its entries, none if it has been seen."""
    found = os.stat(folder)
    identity = found.st_dev, found.st_ino
    if identity in seen:
        return identity, []
    with os.scandir(folder) as entries:
        return identity, list(entries)


def _outputs(folder: Path, entries: list[os.DirEntry[str]]) -> set[str]:
    """Return the names in a folder that our commands wrote there."""
    names = {entry.name for entry in entries}
    found = {name for name in names if USUAL_OUTPUTS.fullmatch(name)} if "metrics.jsonl" in names else set()
    if OUTPUTS in names:
        try:
            check_file(folder / OUTPUTS)
            with (folder / OUTPUTS).open("rb") as file:
                listed = file.read(LARGEST_LIST).decode("utf-8", "surrogateescape")
        except OSError as error:
            if is_trouble(error):
                raise
        else:
            found |= names & set(listed.split("\n"))
    return found


def _text(path: Path) -> bytes | None:
    """Return the beginning of a file, one byte more than captions may have, or None. Pipes are never read."""
    try:
        kind = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
        return None
    with path.open("rb") as file:
        return file.read(MAX_TEXT_BYTES + 1)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if is_trouble(error):
            raise
        return False  # a link to itself


def bounded(text: bytes | OSError) -> bytes | OSError:
    """Return the captions of one image, or an error if they are too long."""
    return OSError("larger than 1 MiB") if isinstance(text, bytes) and len(text) > MAX_TEXT_BYTES else text
