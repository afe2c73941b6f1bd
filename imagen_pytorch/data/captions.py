"""Captions of the pictures in a folder: text files beside them, or one table for all."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..registry import suggestion
from .base import DataError

#: The column with a picture's path, relative to the table.
PATH_COLUMN = "file_name"


def _json_lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}, line {number}: not JSON ({error.msg})") from None
            if not isinstance(row, dict):
                raise DataError(
                    f'{path}, line {number}: each line holds an object such as {{"file_name": …, "text": …}}'
                )
            yield number, row


def _comma_separated(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        for row in reader:
            yield reader.line_num, row


#: Readers of tables, by file name; the first that exists counts.
TABLES = {"metadata.jsonl": _json_lines, "metadata.csv": _comma_separated}


def find_table(folder: Path, pictures: Iterable[Path]) -> Path | None:
    """The table of captions in a folder, if there is one.

    Args:
        folder: where to look; not in subfolders.
        pictures: relative paths of the folder's pictures. One of them may be called "metadata", with a text beside it.

    Raises:
        DataError: there is none, but a file whose name looks like a misspelt one.
    """
    found = next((folder / name for name in TABLES if (folder / name).is_file()), None)
    near = sorted(path.name for path in folder.glob("metadata.*"))
    if found is None and near and not any(path.with_suffix("") == Path("metadata") for path in pictures):
        raise DataError(f"{folder / near[0]} is not read: a table of captions is called {' or '.join(TABLES)}")
    return found


def _texts(value: Any, place: str) -> list[str]:
    texts = [value] if value is None or isinstance(value, str) else value
    if not isinstance(texts, list) or not all(item is None or isinstance(item, str) for item in texts):
        raise DataError(f"{place}: a caption is a string or a list of strings, got {value!r}")
    return [item.strip() for item in texts if item and item.strip()]


def read_table(path: Path, text_column: str) -> dict[str, tuple[str, ...]]:
    """Captions by picture; a picture may have several, in one row or in several rows.

    Args:
        path: of a table with a column ``file_name`` and one of captions.
        text_column: name of the latter.

    Raises:
        DataError: a column is missing (the message lists those that exist), or the table has no rows or cannot be read.
    """
    captions: dict[str, list[str]] = {}
    try:
        for number, row in TABLES[path.name](path):
            place = f"{path}, line {number}"
            _check_columns(row, (PATH_COLUMN, text_column), place)
            picture = Path(str(row[PATH_COLUMN])).as_posix()
            captions.setdefault(picture, []).extend(_texts(row[text_column], place))
    except UnicodeDecodeError:
        raise DataError(f"{path} is no UTF-8 text; save it as UTF-8") from None
    except csv.Error as error:
        raise DataError(f"{path} is no table of comma-separated values: {error}") from None
    if not captions:
        raise DataError(f"{path} has no rows; take it away if the pictures have no captions")
    return {picture: tuple(texts) for picture, texts in captions.items()}


def _check_columns(row: Mapping[str, Any], wanted: tuple[str, ...], place: str) -> None:
    columns = tuple(str(key) for key in row if key is not None)
    for column in wanted:
        if column not in row:
            known = f"{', '.join(columns)}{suggestion(column, columns)}"
            raise DataError(f'{place}: no column "{column}", but: {known}')


def read_beside(picture: Path, extension: str) -> tuple[str, ...] | None:
    """The captions in the text file beside a picture, one per line; None if there is no such file.

    Raises:
        OSError: the file cannot be read, or is no UTF-8 text.
    """
    path = picture.with_suffix(f".{extension.lstrip('.')}")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        raise OSError(f"{path.name} is no UTF-8 text") from None
    return tuple(line.strip() for line in lines if line.strip())
