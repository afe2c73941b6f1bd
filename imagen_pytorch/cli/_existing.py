"""Files of earlier calls, found by the settings in them."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from ..image_metadata import MetadataError, read_settings
from ._files import tell

#: the number at the end of a name that was taken
_NUMBER = re.compile(r"-\d+$")


class Existing:
    """The images and videos of earlier calls, so that a list of captions goes on where it was interrupted.

    Attributes:
        found: number of images that were asked for and existed.
    """

    def __init__(self) -> None:
        self._folders: dict[Path, dict[str, list[Path]]] = {}
        self._settings: dict[Path, dict[str, Any]] = {}
        self.found = 0

    def _of_name(self, path: Path) -> list[Path]:
        """Return the files of this name, or of this name and a number."""
        if path.parent not in self._folders:
            names = self._folders[path.parent] = defaultdict(list)
            for each in sorted(path.parent.iterdir(), key=lambda each: (len(each.name), each.name)):
                for stem in {each.stem, _NUMBER.sub("", each.stem)}:
                    names[f"{stem}{each.suffix}"].append(each)
        return self._folders[path.parent][path.name]

    def _read(self, path: Path) -> dict[str, Any]:
        if path not in self._settings:
            try:
                found = read_settings(path)
            except (OSError, MetadataError):
                found = {}
            self._settings[path] = {name: value for name, value in found.items() if name not in ("schema", "batch")}
        return self._settings[path]

    def has(self, path: Path, settings: dict[str, Any]) -> bool:
        """Return whether an image with these settings has this name, or this name and a number; and print its path."""
        wanted = json.loads(json.dumps(settings))
        same = next((each for each in self._of_name(path) if self._read(each) == wanted), None)
        if same is not None:
            self.found += 1
            tell(same)
        return same is not None
