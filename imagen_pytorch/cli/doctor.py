"""``imagen doctor``: whether an installation is complete, and how a training went."""

from __future__ import annotations

import click

from ._options import Place


@click.command(short_help="Check the installation, or the log of a training.")
@click.argument("run", required=False, type=Place())
@click.option("--selftest", is_flag=True, help="Also train, save, open and sample a tiny cascade: some seconds.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object for programs.")
def doctor(run: str | None, selftest: bool, as_json: bool) -> None:
    """Check versions, devices, precisions, memory, disk and network, and say what to do about what fails.

    With RUN, the output folder of `imagen train` or its metrics.jsonl, judge the training instead: a learning rate that
    is too high, too few steps, overfitting, or too slow reading of the data. Exit code 1 says that something is wrong.
    The report names neither the user nor folders, so it can be pasted anywhere.

    \b
    imagen doctor --selftest
    imagen doctor runs/demo
    """
    from ._doctor import examine

    if not examine(run, selftest, as_json):
        raise click.exceptions.Exit(1)
