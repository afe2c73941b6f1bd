"""Commands and scripts in processes of their own.

They are forked from one process that has imported everything, which each of them would take seconds for; they share
nothing with the tests. Started as a program, this file is that process.
"""

from __future__ import annotations

import atexit
import functools
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

RANKS = Path(__file__).parent / "ranks"


def usual_signals() -> None:
    """React to signals as a program in a terminal does; what runs in the background of a script inherits otherwise."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@functools.cache
def _mother() -> subprocess.Popen[str]:
    """The process that others are forked from; it ends with the tests, which hold its standard input."""
    return subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )


def _ask(**question: Any) -> Any:
    _mother().stdin.write(json.dumps(question) + "\n")
    return json.loads(_mother().stdout.readline())


def start(code: str, folder: Path, out: Path, err: Path, **environment: str) -> int:
    """Run code in a new process, and return its number.

    Args:
        folder: where it works.
        out: file for its standard output.
        err: file for its standard error; may be the same.
        environment: variables that are set for it.
    """
    return _ask(code=code, folder=str(folder), out=str(out), err=str(err), environment=environment)


def exit_code(pid: int) -> int | None:
    """The exit code of a process, once; negative after a signal, None as long as it runs."""
    return _ask(poll=pid)


def launch(count: int, script: str, *arguments: object, seconds: int = 200) -> subprocess.CompletedProcess[str]:
    """Run a script on several processes, which know of each other as those of torchrun do; none outlives the test."""
    call = (count, str(RANKS / script), [*map(str, arguments)])
    with tempfile.NamedTemporaryFile("r") as talk:
        path = Path(talk.name)
        pid = start(f"import launching\nlaunching.run_ranks(*{call!r})", Path.cwd(), path, path)
        end = time.monotonic() + seconds
        while (code := exit_code(pid)) is None:
            if time.monotonic() > end:
                os.killpg(pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(script, seconds, path.read_text())
            time.sleep(0.02)
        return subprocess.CompletedProcess(call, code, path.read_text())


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


def run_ranks(count: int, script: str, arguments: list[str]) -> NoReturn:
    """Run a script on forks of this process; where one fails, the others end too."""
    os.setsid()
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(RANKS))
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
    sys.exit(failed)


def _become(job: dict[str, Any]) -> NoReturn:
    """Turn a fresh fork into a program."""
    usual_signals()
    for name, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(job[name], os.O_WRONLY | os.O_APPEND), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(job["folder"])
    os.environ.update(job["environment"])
    run_and_end(lambda: exec(job["code"], {}))


def _serve() -> None:
    """Read jobs, one a line; fork a child for each and answer with its number, or with the exit code of one."""
    import_everything()
    for line in iter(sys.stdin.readline, ""):
        job = json.loads(line)
        if "poll" in job:
            pid, status = os.waitpid(job["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if not answer:
                _become(job)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
