"""The data that a name on the command line or in a configuration stands for, however it is spelled."""

from __future__ import annotations

import inspect
import os
from collections.abc import Collection, Mapping
from typing import Any

#: protocols of URLs that name folders of this machine
_LOCAL = ("file", "local")


def _local_path(name: str) -> str | None:
    """The path that the name of a local folder stands for, None for a URL of another place."""
    protocol, found, rest = name.partition("://")
    if not found:
        return os.path.expanduser(name)
    return rest if protocol in _LOCAL else None


def kind_of_source(name: str) -> str:
    """The kind of data that a name stands for: "folder", "hub", or the name of an embedded data set.

    A folder that does not exist is known by its spelling: names of the hub are "owner/name".
    """
    from ..data import SOURCES
    from ..data.huggingface import HUB_NAME

    if name in SOURCES:
        return name
    path = _local_path(name)
    looks_like_hub = path is not None and HUB_NAME.fullmatch(name) and not os.path.isdir(path)
    return "hub" if looks_like_hub else "folder"


def same_source(one: str, other: str) -> bool:
    """Return whether two names stand for the same data: links, "..", "~" and trailing slashes make no difference."""
    if one == other:
        return True
    if kind_of_source(one) != "folder" or kind_of_source(other) != "folder":
        return False
    paths = [_local_path(name) for name in (one, other)]
    if None in paths:
        return one.rstrip("/") == other.rstrip("/")
    return os.path.realpath(paths[0]) == os.path.realpath(paths[1])


def kept_arguments(name: str, dataset: Collection[str]) -> frozenset[str]:
    """The arguments that the source of these data takes.

    Args:
        name: of the data.
        dataset: names of the arguments that are given; a folder is one of clips if they ask for frames.
    """
    from ..data import SOURCES, Dataset, VideoDataset
    from ..data.huggingface import hub_dataset

    kind = kind_of_source(name)
    folder = VideoDataset if "num_frames" in dataset else Dataset
    source = SOURCES[name] if kind == name else hub_dataset if kind == "hub" else folder
    return frozenset(inspect.signature(source).parameters) - {"folder", "name"}


def data_record(name: str, dataset: Any, arguments: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return what a checkpoint remembers of its data.

    Args:
        name: of the data.
        dataset: the open data set.
        arguments: of its source; those that are plain values are remembered.

    Returns:
        name, number of items, a digest of their names and, if any are given, the arguments.
    """
    from ..training.identity import data_digest

    plain = {key: value for key, value in (arguments or {}).items() if _is_plain(value)}
    record = {"name": name, "count": len(dataset), "digest": data_digest(dataset)}
    return {**record, "arguments": plain} if plain else record


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def change_of_data(before: Any, now: Mapping[str, Any]) -> list[str]:
    """Describe how the data of a run differ from those of the checkpoint that it goes on from, in one line, if they do.

    Args:
        before: the record in the checkpoint, whatever it holds.
        now: of `data_record`.
    """
    from ..data.decoding import printable

    if not isinstance(before, Mapping) or not isinstance(before.get("name"), str):
        return []
    name, count = printable(before["name"][:200]), before.get("count")
    count = count if isinstance(count, int) and 0 <= count < 2**63 else "?"
    same_items = before.get("digest") == now.get("digest") and count == now["count"]
    if same_items and (now.get("digest") is not None or same_source(before["name"], now["name"])):
        return []
    if same_source(before["name"], now["name"]):
        return [f"{now['name']} holds {now['count']} items, other ones than the {count} at the last save"]
    return [
        f"other data than at the last save: now {now['name']} ({now['count']} items), before {name} ({count}); "
        "-o with another folder starts a new model"
    ]
