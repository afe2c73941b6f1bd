"""Scripts on several processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

RANKS = Path(__file__).parent / "ranks"


def usual_signals() -> None:
    """React to signals as a program in a terminal does; what runs in the background of a script inherits otherwise."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def launch(count: int, script: str, *arguments: object, seconds: int = 200) -> subprocess.CompletedProcess[str]:
    """Run a script on several processes; none of them outlives the test."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    with subprocess.Popen(
        [*command, str(RANKS / script), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=usual_signals,
    ) as process:
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, output)


def run(count: int, script: str, *arguments: object) -> None:
    """The same for one that has to end well."""
    done = launch(count, script, *arguments)
    assert done.returncode == 0, done.stdout
