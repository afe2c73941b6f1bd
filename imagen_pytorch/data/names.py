"""File names as tables spell them, and the files of a folder that they mean."""

from __future__ import annotations

import os
import posixpath
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath

from .local_folder import LocalFolder, Place

#: Reasons why a name in a table is refused.
ABSOLUTE = "outside of the folder: an absolute path; names in a table are relative to it"
OUTSIDE = "outside of the folder"


class Outside(ValueError):
    """A name outside of the folder of its table."""


def _alike(path: str) -> str:
    """Return a key that is equal for names that differ in case or in the encoding of accents."""
    return unicodedata.normalize("NFC", path).casefold()


class Names:
    """The images or clips of a folder by their names in tables, each by one path for all spellings.

    Args:
        place: the folder.
        found: relative paths of the items in it.

    Attributes:
        aliases: paths among ``found`` that are links to others, and whose captions belong to those.
    """

    def __init__(self, place: Place, found: Iterable[Path]) -> None:
        self.place = place
        self.found = {path.as_posix(): path for path in found}
        self.aliases: set[Path] = set()

    @cached_property
    def _similar(self) -> dict[str, list[Path]]:
        """Paths by spelling without case, with and without their ending."""
        similar = defaultdict(list)
        for text, path in self.found.items():
            for spelling in {_alike(text), _alike(path.with_suffix("").as_posix())}:
                similar[spelling].append(path)
        return similar

    @cached_property
    def _folders(self) -> dict[str, str]:
        """Folders of the items, by their real paths."""
        parents = {posixpath.dirname(text) for text in self.found}
        return {os.path.realpath(self.place.at(Path(parent))): parent for parent in sorted(parents, reverse=True)}

    def path(self, name: str, base: str = "") -> Path:
        """Return the file that a table means, or, if it is missing, the path that its name spells.

        Backslashes separate folders if no file has one in its name. Another case, another encoding of accents and a
        missing ending are understood if they fit one file only.

        Args:
            name: relative to the table.
            base: the folder of the table, relative to the complete folder.

        Raises:
            Outside: an absolute path, or one that leaves the folder of the table.
        """
        spellings = dict.fromkeys((name, name.strip(), name.replace("\\", "/")))
        paths = [posixpath.join(base, posixpath.normpath(spelling)) for spelling in spellings]
        inside = [path for path, spelling in zip(paths, spellings, strict=True) if not _leaves(spelling)]
        for path in inside:
            if path in self.found:
                return self._own(path)
        for path in inside:
            if self.place.exists(Path(path)):
                return self._own(path)
        if PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive or name.startswith("\\"):
            raise Outside(ABSOLUTE)
        if len(inside) < len(paths):
            raise Outside(OUTSIDE)
        for path in inside:
            similar = self._similar.get(_alike(path), ())
            if len(similar) == 1:
                return similar[0]
        return Path(inside[-1])

    def _own(self, path: str) -> Path:
        """Return the path under which a file was found, also if it is reached through links."""
        if not isinstance(self.place, LocalFolder):
            return self.found.get(path, Path(path))
        if path not in self.found or os.path.islink(self.place.at(Path(path))):
            folder, name = os.path.split(os.path.realpath(self.place.at(Path(path))))
            real = posixpath.join(self._folders.get(folder, ".."), name)
            if real in self.found:
                if path in self.found and real != path:
                    self.aliases.add(self.found[path])
                return self.found[real]
        return self.found.get(path, Path(path))


def _leaves(name: str) -> bool:
    path = posixpath.normpath(name)
    return path.startswith(("/", "../")) or path == ".."
