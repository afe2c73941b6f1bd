"""The checks of ``imagen doctor``, each a line with what was found and what to do about it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import statistics
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import click

from ._errors import format_error
from ._metrics import MetricsLog
from ._progress import MOSTLY

#: free bytes below which a checkpoint or the batches of reading processes may not fit
_DISK, _SHARED = 1e9, 64e6
#: seconds to wait for a connection
_WAIT = 3.0
#: extras whose packages hold weights only, and ask for others that are not needed
_ALONE = ("features",)
#: verdicts on a training that call for a change of it
_WRONG = ("diverged", "rate too high", "overfitting")


class Check(NamedTuple):
    """One line of the report.

    Attributes:
        name: what was looked at.
        found: what was seen.
        state: "ok", "fails", or "note" for what some users need and others do not.
        advice: what to do; "" if nothing is to be done.
    """

    name: str
    found: str
    state: str = "ok"
    advice: str = ""


def _packages() -> Iterator[Check]:
    """Compare the installed packages with those that this one requires, extras last."""
    from packaging.requirements import Requirement

    extras: dict[str, list[Requirement]] = {}
    for requirement in map(Requirement, metadata.requires("imagen-pytorch") or ()):
        extra = str(requirement.marker).partition("extra == ")[2].strip("\"'") if requirement.marker else ""
        extras.setdefault(extra, []).append(requirement)
    extras.pop("test", None)
    for extra, requirements in sorted(extras.items()):
        found, lacking = [], []
        for requirement in requirements:
            try:
                version = metadata.version(requirement.name)
            except metadata.PackageNotFoundError:
                version = "missing"
            found.append(f"{requirement.name} {version}")
            if version == "missing" or not requirement.specifier.contains(version, prereleases=True):
                lacking.append(f'"{requirement.name}{requirement.specifier}"')
        state = "ok" if not lacking else "note" if extra else "fails"
        alone = "--no-deps " if extra in _ALONE else ""
        advice = f"pip install {alone}{' '.join(lacking)}" if lacking else ""
        yield Check(f"extra {extra}" if extra else "packages", ", ".join(found), state, advice)


def _device() -> Iterator[Check]:
    """Describe the device that `--device auto` takes, its memory, and how fast it multiplies in each precision."""
    import torch

    from ..profiling.advice import scaled, this_machine
    from ._options import chosen_device

    device = chosen_device("auto")
    machine = this_machine(device, free=True)
    name = machine.name if device.type == "cuda" else f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    yield Check("device", f"{device.type}: {name}")
    enough = machine.room > _DISK
    yield Check(
        "memory",
        f"{scaled(machine.room, 'B')} free of {scaled(machine.memory, 'B')}",
        "ok" if enough else "fails",
        "" if enough else "end other programs",
    )
    base = product_seconds(device, torch.float32)
    for dtype, option in ((torch.bfloat16, "bf16"), (torch.float16, "fp16")):
        try:
            speed = base / product_seconds(device, dtype)
        except RuntimeError:
            yield Check(option, "not available on this device", "note", f"leave out --precision {option}")
            continue
        advice = "" if speed > 1 else f"--precision {option} saves memory here but no time"
        found = f"{speed:.2g} times the speed of fp32 (a product of matrices)"
        yield Check(option, found, "note" if advice else "ok", advice)


def product_seconds(device: object, dtype: object) -> float:
    """Return the median time of a product of two matrices."""
    import torch

    matrix, times = torch.ones(512, 512, device=device, dtype=dtype), []  # type: ignore[call-overload]
    for _ in range(6):
        began = time.perf_counter()
        float((matrix @ matrix)[0, 0])
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def _storage() -> Iterator[Check]:
    """Look at the current folder, where results go, and at the shared memory of reading processes."""
    from ..profiling.advice import scaled

    free = shutil.disk_usage(".").free
    advice = "" if free > _DISK else "free some space: a checkpoint is written beside the one before"
    yield Check("disk", f"{scaled(free, 'B')} free in this folder", "fails" if advice else "ok", advice)
    try:
        with tempfile.TemporaryFile(dir="."):
            pass
        yield Check("this folder", "can be written")
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        yield Check("this folder", reason, "fails", "go to a folder of your own, or give --output")
    if os.path.isdir("/dev/shm"):
        free = shutil.disk_usage("/dev/shm").free
        advice = "" if free > _SHARED else "dataset.num_workers 0, or a larger --shm-size of the container"
        yield Check("shared memory", f"{scaled(free, 'B')} free", "fails" if advice else "ok", advice)


def _network() -> Iterator[Check]:
    """Look for the hub, which only encoders and data sets that are not on this machine need."""
    from huggingface_hub import constants

    address = urlsplit(constants.ENDPOINT)
    found, advice = f"{address.hostname} answers", ""
    if constants.HF_HUB_OFFLINE:
        found, advice = "not asked: HF_HUB_OFFLINE is set", "unset it to fetch encoders or data sets"
    else:
        try:
            socket.create_connection((address.hostname, address.port or 443), timeout=_WAIT).close()
        except OSError:
            found = f"{address.hostname} does not answer"
            advice = "encoders and data sets of the hub have to be on this machine; what is embedded needs no network"
    yield Check("hub", found, "note" if advice else "ok", advice)


def _selftest() -> Iterator[Check]:
    """Train a tiny cascade for a few steps, save it, open it again and compare what both draw."""
    import torch

    from .. import Imagen, ImagenTrainer, Unet, load_imagen_from_checkpoint

    began = time.perf_counter()
    try:
        options = {"dim": 8, "dim_mults": (1, 2), "layer_attns": False, "layer_cross_attns": False}
        unets = (Unet(**options), Unet(**options, memory_efficient=True))
        imagen = Imagen(unets, image_sizes=(8, 16), timesteps=3, text_encoder_name="builtin:words")
        trainer = ImagenTrainer(imagen, verbose=False, seed=0)
        images, texts = torch.rand(4, 3, 16, 16), ["a red heart", "a blue car", "a fox", "a cat"]
        for number in (1, 2, 1, 2):
            trainer(images, texts=texts, unet_number=number)
            trainer.update(unet_number=number)
        with tempfile.TemporaryDirectory() as folder:
            trainer.save(os.path.join(folder, "selftest.pt"))
            opened = load_imagen_from_checkpoint(os.path.join(folder, "selftest.pt"), load_ema_if_available=True)
        drawn = trainer.sample(texts=texts, seed=1, use_tqdm=False)
        again = opened.to(drawn.device).sample(texts=texts, seed=1, use_tqdm=False)
        same = bool(torch.allclose(drawn, again, atol=1e-3))
    except Exception as error:
        yield Check("self-test", format_error(error), "fails", "imagen doctor --selftest --debug shows where")
        return
    found = f"trained, saved, opened and sampled in {time.perf_counter() - began:.1f} s"
    if same:
        yield Check("self-test", found)
    else:
        yield Check("self-test", "the model that was opened draws something else", "fails", "please report this")


def _training(run: str) -> Iterator[Check]:
    """Judge the log of a training.

    Raises:
        click.UsageError: a log that is missing or too short.
    """
    from ..training.diagnosis import LEAST, diagnose

    path = Path(run, "metrics.jsonl") if os.path.isdir(run) else Path(run)
    if not path.is_file():
        raise click.UsageError(f"no log {path}: give the output folder of `imagen train`, or its metrics.jsonl")
    rows = MetricsLog(path, writes=False).rows()
    findings = diagnose(rows)
    if not findings:
        raise click.UsageError(f"{path} has too few losses for a verdict: {LEAST} of one U-Net are needed")
    for finding in findings:
        state = "fails" if finding.verdict in _WRONG else "ok" if finding.verdict == "fine" else "note"
        yield Check(f"U-Net {finding.unet}", finding.text, state)
    waits = [row["reading"] for row in rows if isinstance(row.get("reading"), float)][-LEAST:]
    if waits and statistics.median(waits) > MOSTLY:
        found = f"takes {statistics.median(waits):.0%} of the time"
        yield Check("reading the data", found, "note", "dataset.num_workers: processes that read")


def _general() -> Iterator[Check]:
    system = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    yield Check("system", f"imagen-pytorch {metadata.version('imagen-pytorch')}, {system}")


def examine(run: str | None, selftest: bool, as_json: bool) -> bool:
    """Print the report; return whether nothing fails.

    Raises:
        click.UsageError: the run has no log that can be judged.
    """
    parts = [_training(run)] if run else [_general(), _packages(), _device(), _storage(), _network()]
    if selftest:
        parts.append(_selftest())
    checks = []
    for check in (check for part in parts for check in part):
        checks.append(check)
        if not as_json:
            click.echo(f"{check.state:5}  {check.name}: {check.found}")
            if check.advice:
                click.echo(f"       {check.advice}")
    healthy = all(check.state != "fails" for check in checks)
    if as_json:
        click.echo(json.dumps({"healthy": healthy, "checks": [check._asdict() for check in checks]}, indent=2))
    return healthy
