"""Snapshots of post-hoc averages in the folder of a run, and the average of any width that is made from them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checkpoints import CheckpointError, read_checkpoint, write_checkpoint
from ..io.files import kind_of, locate, names_in
from ..registry import suggestion
from ..wording import first_of
from .arguments import Range, check_number
from .posthoc import WIDEST, WIDTHS, Combination, PowerAverages, Profile, combine, exponent_of
from .validation import are_averages

_FILE = re.compile(r"^unet([1-9][0-9]{0,3})\.([0-9]{8,18})\.pt$")
_CHECKPOINT = re.compile(r"^checkpoint\.\d+(\.pt)?$")
#: where no period is stated: the first one in updates, and the most snapshots before it is doubled
_PERIOD, _MOST = 16, 64
#: snapshots that are nearer to each other than this fraction of the run say the same
_NEAREST = 1 / 128
#: kinds of numbers in which snapshots can be stored
_DTYPES = {"float16": torch.float16, "float32": torch.float32}
#: a larger distance from the wanted profile is reported
_LARGE_ERROR = 0.05


class PostHoc(NamedTuple):
    """The options of post-hoc averages.

    Attributes:
        folder: for the snapshots, a path or any fsspec URL.
        widths: relative widths that are tracked.
        every: updates from one snapshot to the next. None: 16 at first, twice as many whenever there are 64 snapshots,
            of which every second one is then removed.
        dtype: "float16" or "float32", the numbers of snapshots.
    """

    folder: str
    widths: tuple[float, ...] = WIDTHS
    every: int | None = None
    dtype: str = "float16"


def posthoc_options(given: Any, folder: str | Path | None, sharded: bool = False) -> PostHoc | None:
    """Check the argument ``posthoc_ema`` of a trainer: False (None is returned), True, or options by name.

    Snapshots are kept in the folder "posthoc" in the one for checkpoints unless the options name another.

    Raises:
        TypeError: not one of these, or an unknown option.
        ValueError: a value that does not fit, no folder, or weights that are shared.
    """
    if not isinstance(given, bool | Mapping):
        raise TypeError(f"posthoc_ema must be True, False or options by name, got {given!r}")
    if given is False:
        return None
    if sharded:
        raise ValueError('posthoc_ema does not work with strategy="fsdp2": use strategy="ddp", or leave it out')
    options = dict(given) if isinstance(given, Mapping) else {}
    for name in options.keys() - set(PostHoc._fields):
        known = ", ".join(PostHoc._fields)
        raise TypeError(f'posthoc_ema has no option "{name}"{suggestion(name, PostHoc._fields)}; known: {known}')
    if options.get("folder") is None:
        if folder is None:
            raise ValueError(
                "posthoc_ema needs a folder for its snapshots: give the trainer checkpoint_path and checkpoint_every, "
                'or posthoc_ema={"folder": ...}'
            )
        options["folder"] = f"{str(folder).rstrip('/')}/posthoc"
    widths = options.setdefault("widths", WIDTHS)
    if not isinstance(widths, list | tuple) or len(set(widths)) < 2 or len(set(widths)) < len(widths):
        raise ValueError(f"posthoc_ema: widths must be two or more different numbers, got {widths!r}")
    for width in widths:
        check_number(width, "posthoc_ema: widths", Range(0, WIDEST, open=True))
    check_number(options.get("every"), "posthoc_ema: every", Range(1, whole=True, optional=True))
    if options.get("dtype", "float16") not in _DTYPES:
        raise ValueError(f"posthoc_ema: dtype must be one of {', '.join(_DTYPES)}, got {options['dtype']!r}")
    return PostHoc(**{**options, "folder": str(options["folder"]), "widths": tuple(map(float, widths))})


def snapshots_beside(checkpoint: str | Path) -> str:
    """Return the folder of the snapshots that belong to a checkpoint: ``imagen.posthoc`` beside ``imagen.pt``, and
    ``posthoc`` in a folder of checkpoints."""
    text = str(checkpoint).rstrip("/")
    parent, slash, name = text.rpartition("/")
    if _CHECKPOINT.match(name):
        return f"{parent}{slash}posthoc"
    stem = re.sub(r"\.[^.]*$", "", name) if "." in name.strip(".") else name
    return f"{parent}{slash}{stem.removesuffix('.previous')}.posthoc"


class Snapshots:
    """A folder of snapshots, files ``unet<number>.<updates>.pt``, on a file system that is given, made with arguments,
    or named by its URL."""

    def __init__(self, options: PostHoc, fs: Any = None, fs_kwargs: Mapping[str, Any] | None = None) -> None:
        self.options = options
        self.fs, folder = locate(options.folder, fs, fs_kwargs)
        self.folder = folder.rstrip("/")

    def period(self, count: int) -> int:
        """Return the number of updates between two snapshots after ``count`` updates."""
        period = self.options.every or _PERIOD
        while self.options.every is None and count > _MOST * period:
            period *= 2
        return period

    def is_due(self, averages: PowerAverages) -> bool:
        """Return whether a snapshot is to be taken now."""
        return averages.count > 0 and averages.count % self.period(averages.count) == 0

    def contents(self, averages: PowerAverages) -> dict[str, Any]:
        """Return the contents of a snapshot; weights that float16 cannot hold stay in float32."""
        dtype = _DTYPES[self.options.dtype]

        def stored(item: Tensor) -> Tensor:
            short = item.to(dtype) if item.dtype == torch.float32 else item
            return short if bool(short.isfinite().all()) else item

        averages_now = [{name: stored(item) for name, item in each.items()} for each in averages.tensors]
        return {**averages.state_dict(), "averages": averages_now}

    def path(self, number: int, count: int) -> str:
        """Return where the snapshot of U-Net ``number`` after ``count`` updates is, or is to be."""
        return f"{self.folder}/unet{number}.{count:08d}.pt"

    def counts(self, number: int) -> list[int]:
        """Return the numbers of updates of all snapshots of a U-Net, in ascending order."""
        with suppress(FileNotFoundError):
            found = map(_FILE.match, names_in(self.fs, self.folder))
            return sorted(int(each[2]) for each in found if each and int(each[1]) == number)
        return []

    def write(self, number: int, contents: Mapping[str, Any], checked: int) -> None:
        """Write a snapshot of U-Net ``number`` (1-based), then remove those that are not needed any more, and those of
        a run that was abandoned: after ``checked`` updates and before this one, where training went on from an earlier
        checkpoint.

        If it cannot be written, a CheckpointNotWritten is raised and nothing is removed.
        """
        now = contents["count"]
        write_checkpoint(contents, self.path(number, now), self.fs)
        period = self.period(now)
        for count in self.counts(number):
            if checked < count < now or (self.options.every is None and count < now and count % period):
                self._remove(self.path(number, count))

    def _remove(self, path: str) -> None:
        try:
            self.fs.rm_file(path)
        except FileNotFoundError:
            pass
        except Exception as error:  # every store has errors of its own; what is needed is safe
            warnings.warn(f"cannot remove the snapshot {path}: {error}", stacklevel=3)

    def read(self, number: int, count: int, widths: Sequence[float]) -> list[dict[str, Tensor]]:
        """Return the averages of a snapshot; a CheckpointError if it is damaged, or of averages of other widths."""
        path = self.path(number, count)
        contents = read_checkpoint(path, self.fs)
        if not are_averages(contents) or list(contents["widths"]) != list(widths) or contents["count"] != count:
            raise CheckpointError(f"{path} is not a snapshot of this run; remove it to average without it")
        return contents["averages"]


def _spread(counts: Sequence[int], end: int) -> list[int]:
    """Return those counts below ``end`` that are far enough from each other to say something new."""
    chosen: list[int] = []
    last = end
    for count in sorted(counts, reverse=True):
        if last - count >= _NEAREST * end:
            chosen.append(last := count)
    return chosen[::-1]


class Reconstructed(NamedTuple):
    """The weights of one U-Net by their names in the network, averaged over a relative width: a combination of
    ``count`` snapshots and of the averages in the checkpoint, which come last."""

    weights: dict[str, Tensor]
    combination: Combination
    count: int


def reconstruct(
    contents: Mapping[str, Any], checkpoint: str | Path, width: float, folder: str | Path | None = None
) -> dict[int, Reconstructed]:
    """Compute the averages of a relative width of all U-Nets whose post-hoc averages a checkpoint holds, by their
    numbers (1-based).

    Args:
        contents: of the checkpoint; the averages end with it.
        checkpoint: its path.
        width: relative width, a fraction of the number of updates.
        folder: of the snapshots; by default the one that belongs to the checkpoint.

    Raises:
        ValueError: a width that no average has, or a checkpoint without post-hoc averages.
        CheckpointError: a snapshot that cannot be read or is of another run.
    """
    exponent = exponent_of(width)
    entries = {int(name[7:]) + 1: item for name, item in contents.items() if re.match(r"^posthoc\d{1,4}$", name)}
    if not entries:
        raise ValueError(f"{checkpoint} holds no post-hoc averages: they are tracked with posthoc_ema=True")
    if wrong := [number for number, entry in entries.items() if not are_averages(entry)]:
        raise CheckpointError(f"{checkpoint}: the post-hoc averages of U-Net {wrong[0]} are not as expected")
    snapshots = Snapshots(PostHoc(str(folder or snapshots_beside(checkpoint))))
    return {number: _of_unet(number, entry, exponent, width, snapshots) for number, entry in entries.items()}


def _of_unet(
    number: int, entry: Mapping[str, Any], exponent: float, width: float, snapshots: Snapshots
) -> Reconstructed:
    end, widths = entry["count"], entry["widths"]
    counts = _spread(snapshots.counts(number), end)
    exponents = [exponent_of(each) for each in widths]
    known = [Profile(each, count) for count in (*counts, end) for each in exponents]
    combination = combine(known, Profile(exponent, end))
    if combination.error > _LARGE_ERROR:
        missing = "" if kind_of(snapshots.fs, snapshots.folder) else ", which does not exist"
        warnings.warn(
            f"U-Net {number}: the average deviates by {combination.error:.0%} from the one of relative width {width}: "
            f"there are {len(counts)} snapshots in {snapshots.folder}{missing}",
            stacklevel=4,
        )
    sums: dict[str, Tensor] = {}
    factors = iter(combination.weights)
    for count in (*counts, end):
        for average in entry["averages"] if count == end else snapshots.read(number, count, widths):
            _add(sums, average, next(factors), entry["averages"][0], snapshots.path(number, count))
    return Reconstructed(
        {name: item.to(entry["averages"][0][name].dtype) for name, item in sums.items()}, combination, len(counts)
    )


def _add(
    sums: dict[str, Tensor], average: Mapping[str, Tensor], factor: float, like: Mapping[str, Tensor], path: str
) -> None:
    """Add a multiple of an average to sums in double precision; what is not a floating-point number is taken as it is.
    A CheckpointError for tensors of other names or shapes."""
    if other := [name for name in like if name not in average or average[name].shape != like[name].shape]:
        raise CheckpointError(f"{path} is of another model: {first_of(other)}; remove it to average without it")
    for name, item in like.items():
        if not item.is_floating_point():
            sums[name] = average[name].clone()
        elif name in sums:
            sums[name].add_(average[name].double(), alpha=factor)
        else:
            sums[name] = average[name].double() * factor
