"""What lies beside images without captions and looks like captions: said with the option or the name that is needed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath

from .captions import PATH_COLUMN, TABLES, Captions
from .decoding import printable

#: Endings of files that may hold a caption each, and of those that may hold a table of captions.
CAPTION_ENDINGS = (
    *(".txt", ".text", ".caption", ".captions", ".cap", ".prompt", ".prompts", ".desc", ".label", ".tag", ".tags"),
    *(".md", ".json", ".xml", ".yaml", ".yml"),
)
TABLE_ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".txt", ".parquet", ".arrow", ".xlsx", ".xls", ".ods")

#: Captions within other data.
STRUCTURED = (".json", ".xml", ".yaml", ".yml")

#: Words in the names of tables of captions.
TABLE_WORDS = ("metadata", "caption", "prompt", "label", "annotation", "description", "text", "dataset", "train")

#: How many are said.
SHOWN = 3


def near_misses(files: Iterable[str], pictures: Iterable[str], captions: Captions, column: str) -> tuple[str, ...]:
    """What looks like captions and is not read, each with what to do.

    Args:
        files: relative paths of all files.
        pictures: those of the images.
        captions: what was found.
        column: of captions in tables.
    """
    pictures = set(pictures)
    stems = {str(PurePosixPath(path).with_suffix("")): path for path in pictures}
    beside: dict[str, str] = {}
    tables: list[str] = [
        f"{printable(table.as_posix())} is not read ({reason})" for table, reason in captions.unfit.items()
    ]
    for file in sorted(files):
        path = PurePosixPath(file)
        stem, ending = str(path.with_suffix("")), path.suffix
        if file in pictures or not ending:
            continue
        picture = stems.get(stem) or (stem if stem in pictures else None)
        if picture is not None:
            whole = ending if picture != stem else f"{PurePosixPath(picture).suffix}{ending}"
            if ending.lower() in CAPTION_ENDINGS:
                beside.setdefault(whole, _beside(file, picture, whole, column))
        elif _is_like_a_table(path):
            tables.append(f"{printable(file)} is not read: {_table(column)}")
    return (*beside.values(), *tables)[:SHOWN]


def _is_like_a_table(path: PurePosixPath) -> bool:
    known = path.name.lower() in TABLES
    return not known and path.suffix.lower() in TABLE_ENDINGS and any(word in path.stem.lower() for word in TABLE_WORDS)


def _table(column: str) -> str:
    return f'a table of captions is called {" or ".join(TABLES)} and has the columns "{PATH_COLUMN}" and "{column}"'


def _beside(file: str, picture: str, ending: str, column: str) -> str:
    start = f"{printable(file)} lies beside {printable(picture)} and is not read"
    if PurePosixPath(file).suffix.lower() in STRUCTURED:
        return f"{start}: captions are lines of a text file, or {_table(column)}"
    return f'{start}: the option caption_extension "{printable(ending)}" reads such files'
