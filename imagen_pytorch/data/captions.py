"""Captions of the images in a folder: tables, or text files beside the images."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..registry import suggestion
from .decoding import printable, reason_of
from .local_folder import Place
from .names import Names, Outside
from .skipping import DataError
from .trouble import again

#: The column with the path of an image, relative to the table.
PATH_COLUMN = "file_name"

#: What may separate the columns of a table; the first that separates the column of paths counts.
SEPARATORS = ",;\t|"


@dataclass
class Captions:
    """What is known about the captions in a folder.

    Attributes:
        texts: by image.
        damaged: images whose captions cannot be read, with the reason.
        refused: names in tables that are not used, with the reason.
        aliases: images that are links to others, which have their captions.
        tables: those that were read.
        unfit: those that were not, with the reason.
    """

    texts: dict[Path, tuple[str, ...]] = field(default_factory=dict)
    damaged: dict[Path, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    aliases: set[Path] = field(default_factory=set)
    tables: list[Path] = field(default_factory=list)
    unfit: dict[Path, str] = field(default_factory=dict)


# -- tables -----------------------------------------------------------------------------------------------------------


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


def _separated(lines: Iterable[str], name: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    lines = iter(lines)
    header = next(lines, "")
    try:
        columns = {mark: next(csv.reader([header], delimiter=mark), []) for mark in SEPARATORS}
        fitting = (mark for mark in SEPARATORS if PATH_COLUMN in map(str.strip, columns[mark]))
        mark = next(fitting, SEPARATORS[0])
        reader = csv.DictReader(itertools.chain([header], lines), delimiter=mark, skipinitialspace=True)
        reader.fieldnames = [column.strip() for column in reader.fieldnames or ()]
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise DataError(f"{name} is no table of comma-separated values: {error}") from None


#: Readers of tables, by file name in lower case; the first that exists in a folder counts.
TABLES = {"metadata.jsonl": _json_lines, "metadata.csv": _separated}


def find_table(place: Place, pictures: Iterable[Path]) -> Path | None:
    """The table of captions in a folder itself, if there is one.

    Args:
        place: where to look; not in subfolders.
        pictures: relative paths of the folder's images. One of them may be called "metadata", with a text beside it.

    Raises:
        DataError: there is none, but a file whose name looks like a misspelt one.
    """
    near = place.named("metadata")
    found = _first_table(near)
    if found is None and near and not any(path.with_suffix("") == Path("metadata") for path in pictures):
        name = printable(place.at(near[0]))
        raise DataError(f"{name} is not read: a table of captions is called {' or '.join(TABLES)}")
    return found


def _first_table(paths: Iterable[Path]) -> Path | None:
    """Of files in one folder the table that counts; names in lower case before others."""
    order = list(TABLES)
    tables = [path for path in paths if path.name.lower() in TABLES]
    return min(tables, key=lambda path: (order.index(path.name.lower()), path.name not in TABLES), default=None)


def _tables_below(place: Place) -> list[Path]:
    """The tables of subfolders, the deepest first."""
    folders: dict[Path, list[Path]] = {}
    for path in map(Path, (text for text in place.files() if text.lower().endswith(tuple(TABLES)))):
        folders.setdefault(path.parent, []).append(path)
    tables = [table for folder, paths in folders.items() if folder.parts and (table := _first_table(paths))]
    return sorted(tables, key=lambda path: (-len(path.parts), path.as_posix()))


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


def _rows(place: Place, table: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    name = printable(place.at(table))
    for number, row in TABLES[table.name.lower()](place.lines(table), name):
        yield f"{name}, line {number}", row


def read_table(place: Place, table: Path, text_column: str, names: Names) -> Captions:
    """Captions by image; an image may have several, in one row or in several rows.

    Args:
        place: the folder.
        table: with a column ``file_name`` and one of captions.
        text_column: name of the latter.
        names: of the images in the folder.

    Raises:
        DataError: a column is missing (the message lists those that exist), or the table has no rows or cannot be read.
    """
    name = printable(place.at(table))
    try:
        found = again(lambda: _named_texts(place, table, text_column), name)
    except UnicodeDecodeError:
        raise DataError(f"{name} is no UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"{name} cannot be read: {reason_of(error)}") from None
    if not found:
        raise DataError(f"{name} has no rows; take it away if the pictures have no captions")
    captions, texts, base = Captions(tables=[table]), {}, table.parent.as_posix()
    for picture, given in found.items():
        try:
            texts.setdefault(names.path(picture, "" if base == "." else base), []).extend(given)
        except Outside as reason:
            captions.refused[picture] = str(reason)
    captions.texts = {picture: tuple(filter(is_text, given)) for picture, given in texts.items()}
    damaged = [picture for picture, kept in captions.texts.items() if texts[picture] and not kept]
    captions.damaged = dict.fromkeys(damaged, "caption: no UTF-8 text")
    return captions


def _named_texts(place: Place, table: Path, text_column: str) -> dict[str, list[str]]:
    texts: dict[str, list[str]] = {}
    for where, row in _rows(place, table):
        check_columns(row, (PATH_COLUMN, text_column), where)
        picture = row[PATH_COLUMN]
        if not isinstance(picture, str) or not picture.strip():
            raise DataError(f"{where}: {PATH_COLUMN} is the path of a picture, got {picture!r}")
        texts.setdefault(picture, []).extend(_texts(row[text_column], where))
    return texts


def check_columns(row: Mapping[str, Any], wanted: tuple[str, ...], place: str) -> None:
    """See that a table has the columns that are needed.

    Raises:
        DataError: one is missing; the message lists those that exist.
    """
    columns = tuple(printable(key) for key in row if key is not None)
    for column in wanted:
        if column not in row:
            known = f"{', '.join(columns)}{suggestion(column, columns)}"
            hint = "" if column == PATH_COLUMN else "; text_label names the column of captions"
            raise DataError(f'{place}: no column "{column}", but: {known}{hint}')


def _unfit(place: Place, table: Path, text_column: str) -> str | None:
    """Why the table of a subfolder is none of captions; None if it is one."""
    try:
        where, row = again(lambda: next(_rows(place, table), ("", {})), printable(table))
        # the caller names the table, and a reason is short
        check_columns(row, (PATH_COLUMN, text_column), where.rpartition(", ")[2] or "it")
    except (OSError, ValueError) as error:
        if isinstance(error, DataError) or not isinstance(error, ValueError):
            return reason_of(error)
        return "no UTF-8 text"
    return None


# -- text files -------------------------------------------------------------------------------------------------------


def read_beside(place: Place, pictures: Mapping[Path, Path], extension: str) -> Captions:
    """The captions in text files beside images, one per line; their ending may be in any case of letters.

    Args:
        place: the folder.
        pictures: each with the path whose ending gives way to that of the captions.
        extension: of the text files.
    """
    ending = f".{extension.lstrip('.')}"
    files = set(place.files())
    others = {text[: -len(ending)] + ending: text for text in files if text.lower().endswith(ending.lower())}
    wanted: dict[Path, list[Path]] = {}
    for picture, path in pictures.items():
        text = path.with_suffix(ending).as_posix()
        wanted.setdefault(Path(text if text in files else others.get(text, text)), []).append(picture)
    captions = Captions()
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


# -- both -------------------------------------------------------------------------------------------------------------


def find_captions(place: Place, pictures: Mapping[Path, Path], text_column: str, extension: str) -> Captions:
    """The captions in a folder.

    A table in the folder itself tells all of them. Without one, the tables of subfolders tell those of the images
    below them, the nearest one first, and text files beside the images tell the others.

    Args:
        place: the folder.
        pictures: relative paths of its images, each with the path whose ending gives way to that of its captions.
        text_column: of tables.
        extension: of text files.

    Raises:
        DataError: a table that cannot be read.
    """
    names, table = Names(place, pictures), find_table(place, pictures)
    if table is not None:
        captions = read_table(place, table, text_column, names)
    else:
        captions = Captions()
        for below in _tables_below(place):
            reason = _unfit(place, below, text_column)
            if reason is not None:
                captions.unfit[below] = reason
                continue
            found = read_table(place, below, text_column, names)
            for own, new in zip(_parts(captions), _parts(found), strict=True):
                own.update({key: value for key, value in new.items() if key not in own})
            captions.tables.append(below)
        known = {*captions.texts, *captions.damaged, *names.aliases}
        rest = {picture: path for picture, path in pictures.items() if picture not in known}
        beside = read_beside(place, rest, extension)
        captions.texts |= beside.texts
        captions.damaged |= beside.damaged
    captions.aliases = names.aliases
    return captions


def _parts(captions: Captions) -> tuple[dict[Any, Any], ...]:
    return captions.texts, captions.damaged, captions.refused
