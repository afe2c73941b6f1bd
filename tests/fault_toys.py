"""Runs of ``imagen train`` that can be killed, and what they leave.

Children are forked from one process that has imported everything, so that each of them starts in a second and not in
five; they are processes like any others and share nothing with the tests.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from launching import exit_code, start, usual_signals
from PIL import Image

from imagen_pytorch.checkpoint import read_checkpoint

COLOURS = ((200, 40, 40), (40, 180, 60), (50, 70, 200), (220, 210, 60))
UNET = {"dim": 8, "dim_mults": [1], "num_resnet_blocks": 0, "layer_attns": False, "attn_heads": 2}
UNET |= {"use_global_context_attn": False, "final_resnet_block": False, "init_cross_embed": False}
#: seconds that anything may take on a machine with better things to do
LIMIT = 120

#: code for a child that stops in front of a step (after the number of steps that ``AT`` is to be replaced with) until
#: the file "go" appears; of several processes each writes a file of its own
HOLD = """
import os, pathlib, time
from imagen_pytorch import ImagenTrainer
step = ImagenTrainer.train_step
def held(self, **arguments):
    if int(self.steps.sum()) == AT:
        pathlib.Path("held" + os.environ.get("RANK", "")).touch()
        while not pathlib.Path("go").exists():
            time.sleep(0.02)
    return step(self, **arguments)
ImagenTrainer.train_step = held
"""


class Ended(NamedTuple):
    """What a run left on its way out; the code is negative after a signal."""

    code: int
    out: str
    err: str


def make_folder(folder: Path, count: int = 4, **changes: Any) -> Path:
    """A folder with pictures and a configuration for them, whose entries may be changed.

    The learning rate is constant, so that runs of different lengths take the same steps.
    """
    pictures = folder / "pictures"
    pictures.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (8, 8), COLOURS[number % 4]).save(pictures / f"{number}.png")
    values = {
        "type": "elucidated",
        "imagen": {"unets": [UNET], "image_sizes": [8], "condition_on_text": False, "num_sample_steps": 2},
        "trainer": {
            "lr": 1e-3,
            "cosine_decay_max_steps": None,
            "ema_update_after_step": 0,
            "ema_update_every": 1,
            **changes.pop("trainer", {}),
        },
        "dataset_name": "pictures",
        "dataset": {"batch_size": 2, "shuffle": True},
        "sample_at_every": 0,
        **changes,
    }
    (folder / "imagen_config.json").write_text(json.dumps(values))
    return folder


# -- what is in a folder ----------------------------------------------------------------------------------------------


def steps(path: Path) -> int:
    """Training steps that a checkpoint holds, 0 if there is none."""
    return int(read_checkpoint(path)["steps"].sum()) if path.exists() else 0


def logged(folder: Path) -> int:
    """The newest step in ``metrics.jsonl``."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def same(one: Any, other: Any) -> bool:
    """Whether two checkpoints, or parts of them, are equal bit for bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if torch.is_tensor(one):
        return one.dtype == other.dtype and torch.equal(one, other)
    return one == other


def same_files(one: Path, other: Path) -> bool:
    """`same` of two files."""
    return same(read_checkpoint(one), read_checkpoint(other))


def until(condition: Callable[[], Any], child: Child | None = None, limit: float = LIMIT) -> Any:
    """Wait for something true; not longer than a child lives or the limit says."""
    end = time.monotonic() + limit
    while not (found := condition()):
        gone = child is not None and child.ended()
        if gone and not condition():
            raise AssertionError(f"the run ended before: {child.result()}")
        assert time.monotonic() < end, f"not within {limit} s{'' if child is None else ': ' + str(child.said())}"
        time.sleep(0.02)
    return found


# -- children ---------------------------------------------------------------------------------------------------------


class Child:
    """A running command; its talk goes into files outside its folder."""

    def __init__(self, pid: int, talk: Path, poll: Callable[[], int | None]) -> None:
        self.pid, self.talk, self.poll = pid, talk, poll
        self.code: int | None = None

    def ended(self) -> bool:
        """Whether it is no more."""
        if self.code is None:
            self.code = self.poll()
        return self.code is not None

    def kill(self, number: int = signal.SIGKILL) -> Child:
        """Send a signal, unless it has gone."""
        if not self.ended():
            os.kill(self.pid, number)
        return self

    def said(self) -> tuple[str, str]:
        """Its standard output and standard error so far."""
        return (self.talk / "out").read_text(), (self.talk / "err").read_text()

    def result(self, limit: float = LIMIT) -> Ended:
        """Wait for its end; one that does not end is killed."""
        end = time.monotonic() + limit
        while not self.ended() and time.monotonic() < end:
            time.sleep(0.02)
        if not self.ended():
            self.kill()
            raise AssertionError(f"still running after {limit} s: {self.said()}")
        return Ended(self.code, *self.said())


class Nursery:
    """Starts commands as children.

    Args:
        folder: where their talk is kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        self.children: list[Child] = []

    def _talk(self) -> Path:
        self.count += 1
        talk = self.folder / f"talk{self.count}"
        talk.mkdir()
        for name in ("out", "err"):
            (talk / name).touch()
        return talk

    def start(
        self, folder: Path, *arguments: object, before: str = "", largest: int | None = None, **environment: str
    ) -> Child:
        """``imagen ARGUMENTS`` in a folder.

        Args:
            before: code that runs first.
            largest: bytes that a file may have, as the system's limit says.
            environment: variables that are set for it.
        """
        talk = self._talk()
        if largest is not None:
            before = f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({largest},) * 2)\n{before}"
        code = f"{before}\nfrom imagen_pytorch.cli import main\nmain({[*map(str, arguments)]!r}, prog_name='imagen')"
        pid = start(code, folder, talk / "out", talk / "err", **environment)
        self.children.append(Child(pid, talk, lambda: exit_code(pid)))
        return self.children[-1]

    def ranks(self, folder: Path, *arguments: object, before: Sequence[str] = ("", "")) -> list[Child]:
        """``imagen ARGUMENTS`` on as many processes as there are pieces of code to run before, one for each."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(len(before))}
        return [
            self.start(folder, *arguments, before=code, RANK=str(rank), LOCAL_RANK=str(rank), **shared)
            for rank, code in enumerate(before)
        ]

    def launch(self, folder: Path, *command: object, **environment: str) -> Child:
        """Any command in a folder, started afresh, with the interpreter in front."""
        talk = self._talk()
        with (talk / "out").open("w") as out, (talk / "err").open("w") as err:
            process = subprocess.Popen(
                [sys.executable, *map(str, command)],
                cwd=folder,
                env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                preexec_fn=usual_signals,
            )
        self.children.append(Child(process.pid, talk, process.poll))
        return self.children[-1]

    def run(self, folder: Path, *arguments: object, **options: Any) -> Ended:
        """`start` and wait."""
        return self.start(folder, *arguments, **options).result()

    def close(self) -> None:
        """End everything that still runs."""
        for child in self.children:
            child.kill()
