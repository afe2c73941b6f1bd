"""``imagen report``: the page about a training."""

from __future__ import annotations

from pathlib import Path

import click

from ._options import Place


@click.command(short_help="Write the page about a training.")
@click.argument("run", default=".", type=Place())
def report(run: str) -> None:
    """Write RUN/report.html, one file that opens offline: curves, losses by noise level, samples as a film over the
    steps, figures of `imagen eval`, commands, configuration and environment.

    RUN is the output folder of `imagen train`, which writes the page itself at its end; by default the current folder.

    \b
    imagen report runs/demo
    """
    from ._files import tell
    from ._report import write_report

    path = write_report(Path(run))
    if path is None:
        raise click.UsageError(f"no losses in {Path(run, 'metrics.jsonl')}: give the output folder of `imagen train`")
    tell(path)
