"""``imagen sample --sweep``: one sheet per caption and seed in which one or two options take several values."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any

import click

from ._errors import say
from ._files import tell, write_new
from ._process import this_process
from ._request import MAX_CELLS, Request, target_path
from ._sampling import Wanted, check_arguments, results, sample_arguments
from ._session import Session, open_sessions

if TYPE_CHECKING:
    from ._assignments import Axis

#: the word at the end of a sheet's name
_WORD = "sweep"


def _labels(axis: Axis | None) -> list[str]:
    return [""] if axis is None else [f"{axis.name} {text}" for text in axis.texts]


def _settings_of(axis: Axis | None) -> list[dict[str, Any]]:
    return [{}] if axis is None else [{axis.name: value} for value in axis.values]


def _check(request: Request) -> None:
    """Refuse what a sweep cannot do, before a model is loaded."""
    names = [axis.name for axis in request.sweep]
    if len(names) > 2:
        raise click.UsageError(f"a sheet has two axes, got --sweep with {', '.join(names)}")
    if len(set(names)) < len(names):
        raise click.UsageError(f"--sweep has {names[0]} twice: give all of its values at once")
    usual = {"cache_interval": 1}
    for name in names:
        if getattr(request, name) != usual.get(name):
            raise click.UsageError(f"--sweep {name}=... and --{name.replace('_', '-')} contradict each other")
    if request.output == "-" or request.grid or request.save_stages:
        raise click.UsageError("--sweep writes sheets alone: leave out --grid, --save-stages and --output -")
    if this_process().count > 1:
        raise click.UsageError("--sweep is for one process: start it without a launcher")


def run(request: Request) -> None:
    """Make and write the sheets.

    Raises:
        click.ClickException: anything that the user can put right.
        ValueError: a value that the model does not take; raised before anything is made.
    """
    _check(request)
    columns, rows = (*request.sweep, None)[:2]
    sessions = open_sessions(request, this_process())
    cells = [{**column, **row} for row, column in product(_settings_of(rows), _settings_of(columns))]
    if (number := len(cells) * sum(session.count for session in sessions)) > MAX_CELLS:
        raise click.UsageError(f"{number:,} images are too many for sheets: at most {MAX_CELLS:,}")
    for session in sessions:
        _write_sheets(session, cells, _labels(rows), _labels(columns))


def _write_sheets(session: Session, cells: list[dict[str, Any]], rows: list[str], columns: list[str]) -> None:
    imagen, outputs, request = session.imagen, session.outputs, session.request
    wanted = list(session.wanted())
    requests = [replace(request, **cell) for cell in cells]
    calls = [session.arguments | sample_arguments(each, imagen, session.stop) for each in requests]
    for call in calls:
        check_arguments(imagen, call)
    if not request.quiet:
        names = " and ".join(axis.name for axis in request.sweep)
        say(f"{session.place}: {session.words} but for {names}, seed {wanted[0].seed}")
    made = []
    for call in calls:
        items = results(imagen, wanted, request.batch_size, {**call, **outputs.arguments()})
        made.append([item.stages[-1] for item in items])
    width = len(columns)
    for index, item in enumerate(wanted):
        images = [cell[index] for cell in made]
        table = [images[first : first + width] for first in range(0, len(images), width)]
        sheet = outputs.table(table, rows, columns, _title(item))
        path = outputs.grid_name(target_path(request, item.caption, outputs.suffix), _WORD)
        tell(write_new(outputs.encode(sheet, path.suffix, session.last - 1), path))


def _title(item: Wanted) -> str:
    seed = f"seed {item.seed}"
    return seed if item.caption is None else f"{item.caption} ({seed})"
