"""Scripts on several processes.

They are forked from one process that has imported everything, which each of them would take seconds for, and know of
each other as those of torchrun do. Started as a program, this file is that process: COUNT SCRIPT ARGUMENT...
"""

from __future__ import annotations

import atexit
import gc
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

RANKS = Path(__file__).parent / "ranks"


def usual_signals() -> None:
    """React to signals as a program in a terminal does; what runs in the background of a script inherits otherwise."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def launch(count: int, script: str, *arguments: object, seconds: int = 200) -> subprocess.CompletedProcess[str]:
    """Run a script on several processes; none of them outlives the test."""
    command = [sys.executable, __file__, str(count), str(RANKS / script), *map(str, arguments)]
    with subprocess.Popen(
        command,
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


# -- the process that others are forked from --------------------------------------------------------------------------


def import_everything() -> None:
    """Import what trainings need, so that forks of this process need not."""
    import accelerate  # noqa: F401
    import ema_pytorch  # noqa: F401
    import fsspec.implementations.local  # noqa: F401
    import torch._dynamo
    import torch._refs
    import torch.distributed.fsdp
    import torch.utils.flop_counter  # noqa: F401
    from PIL import Image, ImageDraw, ImageFont  # noqa: F401

    import imagen_pytorch.cli._training
    import imagen_pytorch.cli.train
    import imagen_pytorch.configs
    import imagen_pytorch.data
    import imagen_pytorch.evaluation.plots
    import imagen_pytorch.trainer  # noqa: F401

    Image.init()
    gc.freeze()  # a child that looks through all of it would copy it


def run_and_end(function: Callable[[], object]) -> NoReturn:
    """Do the work of a forked process, and end it as the interpreter would, but for taking apart everything that was
    imported, which takes a second."""
    code = 1
    try:
        function()
        code = 0
    except SystemExit as error:
        code = error.code or 0
    except BaseException:
        traceback.print_exc()
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError):  # closed, or on a full disk
            stream.flush()
    os._exit(code)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _run_ranks(count: int, script: str) -> int:
    """Run a script on forks of this process; where one fails, the others end too."""
    import_everything()
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    os.environ |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    running = set()
    for rank in range(count):
        pid = os.fork()
        if not pid:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            run_and_end(lambda: runpy.run_path(script, run_name="__main__"))
        running.add(pid)
    failed = False
    while running:
        pid, status = os.wait()
        running.remove(pid)
        if status and not failed:
            failed = True
            for other in running:
                os.kill(other, signal.SIGTERM)
    return int(failed)


if __name__ == "__main__":
    _, number, program, *_ = sys.argv
    sys.argv, sys.path[0] = sys.argv[2:], str(RANKS)
    sys.path.append(str(Path(__file__).parent))
    sys.exit(_run_ranks(int(number), program))
