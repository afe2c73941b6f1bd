"""``report.html``: the story of a training, read from the files in its folder."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from ..lines import lines_of
from ..training.diagnosis import LEVELS, Curve, curves, diagnose
from ._files import replace_own
from ._metrics import MetricsLog
from ._progress import clock
from ._runs import COMMANDS, ENVIRONMENT, RESOLVED

REPORT = "report.html"
#: bytes of all images of a report, images of a film, and bytes of a text and rows of a table that are shown, at most
ROOM, FRAMES, LENGTH, ROWS = 12_000_000, 100, 100_000, 200
#: names of sheets, and the media types of their endings
_SHEET = re.compile(r"sample-(\d{6,})(?:-unet(\d+))?(?:-\d+)?(\.png|\.gif|\.webp)")
_KINDS = {".png": "image/png", ".gif": "image/gif", ".webp": "image/webp"}


def _text(path: Path) -> str:
    """The beginning of a regular file; empty where there is none."""
    return "\n".join(lines_of(path))[:LENGTH]


def _positive(curve: Curve) -> Curve:
    return [(step, value) for step, value in curve if 0 < value < math.inf]


def _charts(rows: list[Mapping[str, Any]]) -> Iterator[str]:
    """The losses of all U-Nets, and for each U-Net with validations those by noise level."""
    from ..evaluation.page import chart

    found = {
        key: curve
        for key, every in curves(rows, ("loss", "valid_loss", *LEVELS)).items()
        if (curve := _positive(every))
    }
    words = {"loss": "", "valid_loss": " validation"}
    losses = {f"U-Net {unet}{words[key]}": curve for (unet, key), curve in found.items() if key in words}
    if losses:
        yield chart("Loss", losses)
    for unet in sorted({unet for unet, key in found if key in LEVELS}):
        by_level = {name: found[unet, name] for name in LEVELS if (unet, name) in found}
        titled = {name.removeprefix("valid_").replace("_", " "): curve for name, curve in by_level.items()}
        yield chart(f"Validation loss of U-Net {unet} by noise level", titled)


def _sheets(folder: Path) -> dict[int, dict[int, Path]]:
    """The sheets of each U-Net by step; of several of one step the newest. Links are left out."""
    found: dict[int, dict[int, Path]] = {}
    for path in sorted(folder.glob("sample-*"), key=lambda path: path.lstat().st_mtime_ns):
        name = _SHEET.fullmatch(path.name)
        if name and path.is_file() and not path.is_symlink():
            found.setdefault(int(name[2] or 1), {})[int(name[1])] = path
    return found


def _spread(paths: list[tuple[int, Path]], room: float) -> list[tuple[int, Path]]:
    """As many sheets as fit into a number of bytes, evenly spread, the last one among them."""
    count = min(len(paths), FRAMES)
    while count:
        chosen = [paths[len(paths) - 1 - index * len(paths) // count] for index in reversed(range(count))]
        if sum(path.stat().st_size for _, path in chosen) <= room:
            return chosen
        count = count * 2 // 3
    return []


def _films(folder: Path) -> Iterator[str]:
    from ..evaluation.page import Frame, film

    found = _sheets(folder)
    for unet, by_step in sorted(found.items()):
        chosen = _spread(sorted(by_step.items()), ROOM / len(found))
        frames = [Frame(f"step {step:,}", path.read_bytes(), _KINDS[path.suffix]) for step, path in chosen]
        some = f" ({len(frames)} of {len(by_step)} sheets)" if len(frames) < len(by_step) else ""
        if frames:
            yield film(f"Samples of U-Net {unet} while it is trained{some}", frames)


def _numbers(values: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """The numbers in the figures of an evaluation with their places; those with an interval in one line."""
    if isinstance(values, Mapping):
        between = [values.get(end) for end in ("low", "high")]
        key = next((key for key in ("value", "generated") if isinstance(values.get(key), int | float)), None)
        if key is not None and all(isinstance(end, int | float) for end in between):
            yield name, f"{values[key]:.4g} ({between[0]:.4g} to {between[1]:.4g})"
            values = {other: value for other, value in values.items() if other not in (key, "low", "high")}
        for key, value in values.items():
            yield from _numbers(value, f"{name} {str(key).replace('_', ' ')}".strip())
    elif isinstance(values, int | float) and not isinstance(values, bool):
        yield name, f"{values:.4g}"


def _evaluations(folder: Path) -> Iterator[str]:
    """A table for each result of `imagen eval` in the folder."""
    from ..evaluation.page import table

    for path in sorted(folder.glob("eval*.json")):
        try:
            facts = json.loads("\n".join(lines_of(path))) if path.stat().st_size < LENGTH * 10 else None
            figures = list(_numbers(facts["figures"]))[:ROWS] if isinstance(facts, dict) and "figures" in facts else []
        except (OSError, ValueError, OverflowError, RecursionError):
            continue
        if figures:
            title = f"Evaluation {path.name}, {facts.get('date', 'without a date')}, {facts.get('sampling', '')}"
            yield table(title[:300].rstrip(", "), ("figure", "value"), figures)


def _overview(rows: list[Mapping[str, Any]]) -> str:
    """A table with a line for each U-Net."""
    from ..evaluation.page import table

    found, lines = curves(rows, ("loss", "valid_loss", "epoch", "lr")), []
    for unet in sorted({unet for unet, key in found if key == "loss"}):
        last = {key: found[unet, key][-1][1] for key in ("loss", "valid_loss", "epoch") if (unet, key) in found}
        step = found[unet, "loss"][-1][0]
        shown = [f"{last[key]:.4g}" if key in last else "" for key in ("epoch", "loss", "valid_loss")]
        lines.append(
            (f"U-Net {unet}", f"{step:,}", *shown, _duration([row for row in rows if row.get("unet") == unet]))
        )
    return table("Summary", ("", "steps", "epochs", "last loss", "last validation loss", "time"), lines)


def _duration(rows: list[Mapping[str, Any]]) -> str:
    """The time between the first and the last line of each run of a U-Net, those of several runs together."""
    seconds, before = 0.0, None
    for row in rows:
        try:
            now = (row.get("from_step"), datetime.fromisoformat(row["time"]))
            seconds += max((now[1] - before[1]).total_seconds(), 0) if before and before[0] == now[0] else 0
            before = now
        except (KeyError, TypeError, ValueError):
            continue
    return clock(seconds) if seconds else ""


def write_report(folder: Path) -> Path | None:
    """Write the report of a run anew; returns its path, None if the folder has no log with losses.

    Raises:
        OSError: it cannot be written.
    """
    from ..evaluation.page import page, paragraphs, quoted

    rows = MetricsLog(folder / "metrics.jsonl", writes=False).rows()
    if not curves(rows, ("loss",)):
        return None
    name = folder.resolve().name
    parts = [_overview(rows), paragraphs(f"U-Net {one.unet}: {one.text}." for one in diagnose(rows))]
    parts += [*_charts(rows), *_films(folder), *_evaluations(folder)]
    for title, file in (("Commands", COMMANDS), ("Configuration", RESOLVED), ("Environment", ENVIRONMENT)):
        text = _text(folder / file)
        parts += [quoted(title, text)] if text else []
    path = folder / REPORT
    replace_own(page(f"Training {name}", parts), path)
    return path
