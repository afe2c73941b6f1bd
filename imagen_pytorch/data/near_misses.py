"""Files next to images without captions that look like captions, with the option or the name that reads them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath

from .captions import PATH_COLUMN, TABLES, Captions
from .decoding import printable

#: Endings of files that may hold one caption, and of those that may hold a table of captions.
CAPTION_ENDINGS = (
    *(".txt", ".text", ".caption", ".captions", ".cap", ".prompt", ".prompts", ".desc", ".label", ".tag", ".tags"),
    *(".md", ".json", ".xml", ".yaml", ".yml"),
)
TABLE_ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".txt", ".parquet", ".arrow", ".xlsx", ".xls", ".ods")

#: Captions within other data.
STRUCTURED = (".json", ".xml", ".yaml", ".yml")

#: Words in the names of tables of captions.
TABLE_WORDS = ("metadata", "caption", "prompt", "label", "annotation", "description", "text", "dataset", "train")

#: Largest number of reported files.
SHOWN = 3


def near_misses(files: Iterable[str], images: Iterable[str], captions: Captions, column: str) -> tuple[str, ...]:
    """Return files that look like captions and are not read, each with a remedy.

    Args:
        files: relative paths of all files.
        images: those of the images.
        captions: the captions that were found.
        column: of captions in tables.
    """
    images = set(images)
    stems = {str(PurePosixPath(path).with_suffix("")): path for path in images}
    beside: dict[str, str] = {}
    tables: list[str] = [
        f"{printable(table.as_posix())} is not read ({reason})" for table, reason in captions.unfit.items()
    ]
    for file in sorted(files):
        path = PurePosixPath(file)
        stem, ending = str(path.with_suffix("")), path.suffix
        if file in images or not ending:
            continue
        image = stems.get(stem) or (stem if stem in images else None)
        if image is not None:
            whole = ending if image != stem else f"{PurePosixPath(image).suffix}{ending}"
            if ending.lower() in CAPTION_ENDINGS:
                beside.setdefault(whole, _beside(file, image, whole, column))
        elif _is_like_a_table(path):
            tables.append(f"{printable(file)} is not read: {_table(column)}")
    return (*beside.values(), *tables)[:SHOWN]


def _is_like_a_table(path: PurePosixPath) -> bool:
    known = path.name.lower() in TABLES
    return not known and path.suffix.lower() in TABLE_ENDINGS and any(word in path.stem.lower() for word in TABLE_WORDS)


def _table(column: str) -> str:
    return f'a table of captions is called {" or ".join(TABLES)} and has the columns "{PATH_COLUMN}" and "{column}"'


def _beside(file: str, image: str, ending: str, column: str) -> str:
    start = f"{printable(file)} lies beside {printable(image)} and is not read"
    if PurePosixPath(file).suffix.lower() in STRUCTURED:
        return f"{start}: captions are lines of a text file, or {_table(column)}"
    return f'{start}: the option caption_extension "{printable(ending)}" reads such files'
