"""Captions of the pictures in a folder: text files beside them, or one table for all."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..registry import suggestion
from .decoding import printable, reason_of
from .places import Place
from .skipping import DataError

#: The column with a picture's path, relative to the table.
PATH_COLUMN = "file_name"


class Captions(NamedTuple):
    """What is known about the captions in a folder.

    Attributes:
        texts: by picture.
        damaged: pictures whose captions cannot be read, with the reason.
    """

    texts: dict[Path, tuple[str, ...]]
    damaged: dict[Path, str]


def _json_lines(lines: Iterable[str], name: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply, or too long a number"
            raise DataError(f"{name}, line {number}: not JSON ({reason})") from None
        if not isinstance(row, dict):
            raise DataError(f'{name}, line {number}: each line holds an object such as {{"file_name": …, "text": …}}')
        yield number, row


def _comma_separated(lines: Iterable[str], name: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.DictReader(lines)
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise DataError(f"{name} is no table of comma-separated values: {error}") from None


#: Readers of tables, by file name; the first that exists counts.
TABLES = {"metadata.jsonl": _json_lines, "metadata.csv": _comma_separated}


def find_table(place: Place, pictures: Iterable[Path]) -> Path | None:
    """The table of captions in a folder, if there is one.

    Args:
        place: where to look; not in subfolders.
        pictures: relative paths of the folder's pictures. One of them may be called "metadata", with a text beside it.

    Raises:
        DataError: there is none, but a file whose name looks like a misspelt one.
    """
    near = place.named("metadata")
    found = next((Path(name) for name in TABLES if Path(name) in near), None)
    if found is None and near and not any(path.with_suffix("") == Path("metadata") for path in pictures):
        name = printable(place.at(near[0]))
        raise DataError(f"{name} is not read: a table of captions is called {' or '.join(TABLES)}")
    return found


def is_text(value: str) -> bool:
    """Whether a string can be written as UTF-8; JSON may hold halves of characters."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _texts(value: Any, place: str) -> list[str]:
    texts = [value] if value is None or isinstance(value, str) else value
    if not isinstance(texts, list) or not all(item is None or isinstance(item, str) for item in texts):
        raise DataError(f"{place}: a caption is a string or a list of strings, got {repr(value)[:80]}")
    return [item.strip() for item in texts if item and item.strip()]


def read_table(place: Place, table: Path, text_column: str) -> Captions:
    """Captions by picture; a picture may have several, in one row or in several rows.

    Args:
        place: the folder.
        table: with a column ``file_name`` and one of captions.
        text_column: name of the latter.

    Raises:
        DataError: a column is missing (the message lists those that exist), or the table has no rows or cannot be read.
    """
    name = printable(place.at(table))
    texts: dict[Path, list[str]] = {}
    try:
        with place.lines(table) as lines:
            for number, row in TABLES[table.name](lines, name):
                where = f"{name}, line {number}"
                _check_columns(row, (PATH_COLUMN, text_column), where)
                picture = row[PATH_COLUMN]
                if not isinstance(picture, str) or not picture.strip():
                    raise DataError(f"{where}: {PATH_COLUMN} is the path of a picture, got {picture!r}")
                texts.setdefault(Path(picture), []).extend(_texts(row[text_column], where))
    except UnicodeDecodeError:
        raise DataError(f"{name} is no UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"{name} cannot be read: {reason_of(error)}") from None
    if not texts:
        raise DataError(f"{name} has no rows; take it away if the pictures have no captions")
    kept = {picture: tuple(filter(is_text, captions)) for picture, captions in texts.items()}
    damaged = [picture for picture, captions in kept.items() if texts[picture] and not captions]
    return Captions(kept, dict.fromkeys(damaged, "caption: no UTF-8 text"))


def _check_columns(row: Mapping[str, Any], wanted: tuple[str, ...], place: str) -> None:
    columns = tuple(printable(key) for key in row if key is not None)
    for column in wanted:
        if column not in row:
            known = f"{', '.join(columns)}{suggestion(column, columns)}"
            raise DataError(f'{place}: no column "{column}", but: {known}')


def read_beside(place: Place, pictures: Mapping[Path, Path], extension: str) -> Captions:
    """The captions in text files beside pictures, one per line.

    Args:
        place: the folder.
        pictures: each with the path whose ending gives way to that of the captions.
        extension: of the text files.
    """
    ending = f".{extension.lstrip('.')}"
    wanted: dict[Path, list[Path]] = {}
    for picture, path in pictures.items():
        wanted.setdefault(path.with_suffix(ending), []).append(picture)
    captions = Captions({}, {})
    for path, content in place.texts(wanted):
        try:
            if isinstance(content, OSError):
                raise content
            lines = content.decode("utf-8-sig").splitlines()
        except UnicodeDecodeError:
            reason: str | None = f"caption: {printable(path.name)} is no UTF-8 text"
        except OSError as error:
            reason = f"caption: {reason_of(error)}"
        else:
            reason = None
        for picture in wanted[path]:
            if reason is None:
                captions.texts[picture] = tuple(line.strip() for line in lines if line.strip())
            else:
                captions.damaged[picture] = reason
    return captions
