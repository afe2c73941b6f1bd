"""Captions of the images in a folder: tables, or text files next to the images."""

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
from .trouble import retry

#: Column with the path of an image, relative to the table.
PATH_COLUMN = "file_name"

#: Separators of the columns of a table; the first that separates the column of paths is used.
SEPARATORS = ",;\t|"


@dataclass
class Captions:
    """The captions in a folder.

    Attributes:
        texts: by image.
        damaged: images whose captions cannot be read, with the reason.
        refused: names in tables that are not used, with the reason.
        aliases: images that are links to others, which have their captions.
        tables: tables that were read.
        unfit: tables that were not read, with the reason.
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
        raise DataError(f"{name} is not a table of comma-separated values: {error}") from None


#: Readers of tables, by file name in lower case. The first that exists in a folder is used.
TABLES = {"metadata.jsonl": _json_lines, "metadata.csv": _separated}


def find_table(place: Place, images: Iterable[Path]) -> Path | None:
    """Return the table of captions in the folder itself, if there is one.

    Args:
        place: the folder; subfolders are not searched.
        images: relative paths of the folder's images. One of them may be called "metadata", with a text next to it.

    Raises:
        DataError: no table, but a file whose name looks like a misspelt one.
        DataError: there is none, but a file whose name looks like a misspelt one.
    """
    near = place.named("metadata")
    found = _first_table(near)
    if found is None and near and not any(path.with_suffix("") == Path("metadata") for path in images):
        name = printable(place.at(near[0]))
        raise DataError(f"{name} is not read: a table of captions is called {' or '.join(TABLES)}")
    return found


def _first_table(paths: Iterable[Path]) -> Path | None:
    """Return the table that is used among the files of one folder. Names in lower case come before others."""
    order = list(TABLES)
    tables = [path for path in paths if path.name.lower() in TABLES]
    return min(tables, key=lambda path: (order.index(path.name.lower()), path.name not in TABLES), default=None)


def _tables_below(place: Place) -> list[Path]:
    """Return the tables of subfolders, the deepest first."""
    folders: dict[Path, list[Path]] = {}
    for path in map(Path, (text for text in place.files() if text.lower().endswith(tuple(TABLES)))):
        folders.setdefault(path.parent, []).append(path)
    tables = [table for folder, paths in folders.items() if folder.parts and (table := _first_table(paths))]
    return sorted(tables, key=lambda path: (-len(path.parts), path.as_posix()))


def is_text(value: str) -> bool:
    """Return true if a string can be written as UTF-8. JSON may hold lone surrogates."""
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
    """Read captions by image. An image may have several, in one row or in several rows.

    Args:
        place: the folder.
        table: has a column ``file_name`` and one of captions.
        text_column: name of the latter.
        names: of the images in the folder.

    Raises:
        DataError: a missing column (the message lists the existing ones), or a table without rows or that cannot be
            read.
    """
    name = printable(place.at(table))
    try:
        found = retry(lambda: _named_texts(place, table, text_column), name)
    except UnicodeDecodeError:
        raise DataError(f"{name} is not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"{name} cannot be read: {reason_of(error)}") from None
    if not found:
        raise DataError(f"{name} has no rows; remove it if the images have no captions")
    captions, texts, base = Captions(tables=[table]), {}, table.parent.as_posix()
    for image, given in found.items():
        try:
            texts.setdefault(names.path(image, "" if base == "." else base), []).extend(given)
        except Outside as reason:
            captions.refused[image] = str(reason)
    captions.texts = {image: tuple(filter(is_text, given)) for image, given in texts.items()}
    damaged = [image for image, kept in captions.texts.items() if texts[image] and not kept]
    captions.damaged = dict.fromkeys(damaged, "caption: not UTF-8 text")
    return captions


def _named_texts(place: Place, table: Path, text_column: str) -> dict[str, list[str]]:
    texts: dict[str, list[str]] = {}
    for where, row in _rows(place, table):
        check_columns(row, (PATH_COLUMN, text_column), where)
        image = row[PATH_COLUMN]
        if not isinstance(image, str) or not image.strip():
            raise DataError(f"{where}: {PATH_COLUMN} is the path of an image, got {image!r}")
        texts.setdefault(image, []).extend(_texts(row[text_column], where))
    return texts


def check_columns(row: Mapping[str, Any], wanted: tuple[str, ...], place: str) -> None:
    """Check that a table has the required columns.

    Raises:
        DataError: a missing column; the message lists the existing ones.
    """
    columns = tuple(printable(key) for key in row if key is not None)
    for column in wanted:
        if column not in row:
            known = f"{', '.join(columns)}{suggestion(column, columns)}"
            hint = "" if column == PATH_COLUMN else "; text_label names the column of captions"
            raise DataError(f'{place}: no column "{column}", but: {known}{hint}')


def _unfit(place: Place, table: Path, text_column: str) -> str | None:
    """Return the reason why the table of a subfolder is not one of captions, or None if it is."""
    try:
        where, row = retry(lambda: next(_rows(place, table), ("", {})), printable(table))
        # the caller names the table, and a reason is short
        check_columns(row, (PATH_COLUMN, text_column), where.rpartition(", ")[2] or "it")
    except (OSError, ValueError) as error:
        if isinstance(error, DataError) or not isinstance(error, ValueError):
            return reason_of(error)
        return "not UTF-8 text"
    return None


# -- text files -------------------------------------------------------------------------------------------------------


def read_beside(place: Place, images: Mapping[Path, Path], extension: str) -> Captions:
    """Read the captions in text files next to images, one per line. Case is ignored in their ending.

    Args:
        place: the folder.
        images: images, each with the path whose ending is replaced by that of the captions.
        extension: of the text files.
    """
    ending = f".{extension.lstrip('.')}"
    files = set(place.files())
    others = {text[: -len(ending)] + ending: text for text in files if text.lower().endswith(ending.lower())}
    wanted: dict[Path, list[Path]] = {}
    for image, path in images.items():
        text = path.with_suffix(ending).as_posix()
        wanted.setdefault(Path(text if text in files else others.get(text, text)), []).append(image)
    captions = Captions()
    for path, content in place.texts(wanted):
        try:
            if isinstance(content, OSError):
                raise content
            lines = content.decode("utf-8-sig").splitlines()
        except UnicodeDecodeError:
            reason: str | None = f"caption: {printable(path.name)} is not UTF-8 text"
        except OSError as error:
            reason = f"caption: {reason_of(error)}"
        else:
            reason = None
        for image in wanted[path]:
            if reason is None:
                captions.texts[image] = tuple(line.strip() for line in lines if line.strip())
            else:
                captions.damaged[image] = reason
    return captions


# -- both -------------------------------------------------------------------------------------------------------------


def find_captions(place: Place, images: Mapping[Path, Path], text_column: str, extension: str) -> Captions:
    """Find the captions in a folder.

    A table in the folder itself holds all of them. Without one, the tables of subfolders hold those of the images below
    them, the nearest table first, and text files next to the images hold the others.

    Args:
        place: the folder.
        images: relative paths of its images, each with the path whose ending is replaced by that of its captions.
        text_column: of tables.
        extension: of text files.

    Raises:
        DataError: a table that cannot be read.
    """
    names, table = Names(place, images), find_table(place, images)
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
        rest = {image: path for image, path in images.items() if image not in known}
        beside = read_beside(place, rest, extension)
        captions.texts |= beside.texts
        captions.damaged |= beside.damaged
    captions.aliases = names.aliases
    return captions


def _parts(captions: Captions) -> tuple[dict[Any, Any], ...]:
    return captions.texts, captions.damaged, captions.refused
