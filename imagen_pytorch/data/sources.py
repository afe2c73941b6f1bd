"""Data sets by name: embedded ones, folders, and data sets of the hub."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterable
from typing import Any

from torch.utils.data import Dataset as TorchDataset

from ..registry import import_members, suggestion
from ..wording import printable
from .base import SOURCES, DataError
from .clips import VideoDataset
from .folder import Dataset
from .huggingface import hub_dataset


def check_arguments(source: Callable[..., Any], name: str, given: Iterable[str]) -> None:
    """Check that a data source has these arguments.

    Raises:
        TypeError: lists the arguments of the source.
    """
    known = tuple(key for key in inspect.signature(source).parameters if key not in ("folder", "name", "self"))
    for key in given:
        if key not in known:
            raise TypeError(f'{name} takes no argument "{key}"; it takes: {", ".join(known)}{suggestion(key, known)}')


def open_source(
    name: str,
    *,
    image_label: str | None = None,
    text_label: str | None = None,
    url_label: str | None = None,
    **arguments: Any,
) -> TorchDataset:
    """Open the data set that a configuration names.

    Args:
        name: "emoji64", "moving-digits", a folder (a path or a URL such as ``gs://bucket/images``), or a data set of
            the hub. A folder is one of clips if ``num_frames`` is given, and of images otherwise.
        image_label, text_label, url_label: columns of a data set of the hub. A folder has at most a column of captions
            (``text_label``, in its metadata file); embedded data have none and ignore them.
        arguments: of the data source (`Emoji64`, `MovingDigits`, `Dataset`, `VideoDataset` or `hub_dataset`).

    Raises:
        DataError: nothing readable in it.
        FileNotFoundError: the name does not exist.
        TypeError: an argument that the source does not have.
        ImportError: the name looks like a data set of the hub, and the datasets library is not installed; or the file
            system of a URL needs a package that is not.
    """
    import_members(__package__)
    labels = {"image_label": image_label, "text_label": text_label, "url_label": url_label}
    if name in SOURCES:
        source, labels = SOURCES[name], {}
    elif "://" in name or os.path.isdir(os.path.expanduser(name)):
        of = Dataset if arguments.get("num_frames") is None else VideoDataset
        source, labels = functools.partial(of, os.path.expanduser(name)), {"text_label": text_label}
    else:
        if os.path.isfile(os.path.expanduser(name)):
            raise DataError(f"{printable(name)} is a file; data are a folder, or a data set by its name")
        source = functools.partial(hub_dataset, name)
    check_arguments(source, name, arguments)
    return source(**{key: value for key, value in labels.items() if value is not None}, **arguments)
