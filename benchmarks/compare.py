"""The package beside what a user would pick instead: medians, and ratios within one run.

    benchmarks/peers.sh /tmp/peers                                  # once: imagen-pytorch and diffusers
    python benchmarks/compare.py --peers /tmp/peers/bin/python      # about half an hour with one thread

Without ``--peers`` this package alone is measured; ``--cases README,curve`` picks by words. Every side of a case
lives in a process of its own, measured in turns (A B C, A B C ...), so that a noisy machine hits all alike.
A ratio is the median over the rounds of the ratio within a round; the range is that of these. On a CPU the clock is CPU
time, which counts the work of all threads and not what else the machine does; on a GPU it is wall time.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
#: whole programs, by side: interpreter, imports, and the work
PROGRAMS = {
    "import": {
        "torch alone": "import torch",
        "ours": "from imagen_pytorch import Imagen, ImagenTrainer",
        "imagen-pytorch": "from models import package; package('imagen-pytorch').ImagenTrainer",
        "diffusers": "from diffusers import UNet2DConditionModel, DDPMScheduler",
    },
    "imagen --help": {
        "ours": "from imagen_pytorch.cli import main; main(['--help'])",
        "imagen-pytorch": "from models import package; package('imagen-pytorch'); "
        "from imagen_pytorch.cli import main; main()",
    },
}
#: words of cases that take minutes or a GPU: only when they are named
SLOW = ("compiled", "graphs", "large")


class Side:
    """A process that measures one case."""

    def __init__(self, name: str, case: str, python: str, options: argparse.Namespace) -> None:
        self.name, self.seconds = name, {"wall": [], "cpu": []}
        self.process = subprocess.Popen(
            [python, str(HERE / "sides.py"), name, case, options.device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment(name, options.threads),
        )
        self.about: dict = {}

    def wait(self) -> None:
        """Until it is ready, or has failed."""
        self.about = self._read()

    def _read(self) -> dict:
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"error": f"ended with {self.process.wait()}"}

    def measure(self) -> None:
        """Do the work once."""
        print(file=self.process.stdin, flush=True)
        self.about |= self._read()
        for clock, seconds in self.seconds.items():
            seconds.append(self.about.get(clock, float("nan")))

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()


def environment(side: str, threads: int) -> dict[str, str]:
    """Of a side: this checkout for this package, and nothing of it for the others."""
    mine = str(HERE.parent) if side in ("ours", "bare") else ""
    path = os.pathsep.join(place for place in (str(HERE), mine) if place)
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore",
            "PYTHONPATH": path}  # fmt: skip


def summary(case: str, seconds: dict[str, list[float]], unit: str, **about: object) -> Iterator[dict]:
    """One row per side: median, ratio to the first side, and the range of the ratios."""
    own = next(iter(seconds.values()))
    for side, found in seconds.items():
        ratios = [other / mine for other, mine in zip(found, own, strict=True)]
        yield {
            "case": case,
            "unit": unit,
            "side": side,
            "median": statistics.median(found),
            "ratio": statistics.median(ratios),
            "range": [min(ratios), max(ratios)],
            **about.get(side, {}),
        }


def measured(case: str, pythons: dict[str, str], options: argparse.Namespace) -> Iterator[dict]:
    """The rows of a case."""
    from cases import CASES, CURVES

    chosen = {**CASES, **CURVES}[case]
    one_by_one = options.device == "cpu"  # there a warm-up would disturb the others'
    sides: list[Side] = []
    for name in (name for name in chosen.sides if name in pythons):
        sides.append(Side(name, case, pythons[name], options))
        if one_by_one:
            sides[-1].wait()
    for side in () if one_by_one else sides:
        side.wait()
    for _ in range(options.rounds):
        for side in sides:
            if "error" not in side.about:
                side.measure()
    clock = "wall" if options.device == "cuda" else "cpu"
    about = {side.name: {key: side.about[key] for key in ("memory", "versions") if key in side.about} for side in sides}
    whole = {side.name: side.seconds[clock] for side in sides if "error" not in side.about}
    if whole:
        yield from summary(case, whole, chosen.unit, **about)
    for side in sides:
        side.close()
        if "error" in side.about:
            yield {"case": case, "side": side.name, "error": side.about["error"]}


def started(case: str, pythons: dict[str, str], options: argparse.Namespace) -> Iterator[dict]:
    """The rows of a program: CPU seconds of its whole life."""
    pythons = {**pythons, "torch alone": sys.executable}
    programs = {side: text for side, text in PROGRAMS[case].items() if side in pythons}
    seconds: dict[str, list[float]] = {side: [] for side in programs}
    for _ in range(options.rounds):
        for side, text in programs.items():
            before = os.times()
            subprocess.run(
                [pythons[side], "-c", text], env=environment(side, options.threads), capture_output=True, check=False
            )
            after = os.times()
            spent = after.children_user - before.children_user + after.children_system - before.children_system
            seconds[side].append(spent)
    ordered = {side: seconds[side] for side in ("ours", *seconds) if side in seconds}
    yield from summary(case, ordered, "program")


def ceiling(options: argparse.Namespace) -> dict[str, object]:
    """GFLOP/s of the fastest large product of matrices, and of forward passes; float32 on a CPU, bf16 on a GPU."""
    import torch
    from cases import FORWARDS, forward

    torch.set_num_threads(options.threads)
    fast = options.device == "cuda"
    size, dtype = (8192, torch.bfloat16) if fast else (2048, torch.float32)
    left, right = (torch.randn(size, size, device=options.device, dtype=dtype) for _ in range(2))
    networks = FORWARDS[options.device]
    works = [(lambda: left @ right, 2 * size**3), *(forward(options.device, *network) for network in networks)]
    times = [float("inf")] * len(works)
    for _ in range(12):  # in turns, as the machine is not always as fast; the first ones warm up
        for index, (work, _) in enumerate(works):
            start = time.perf_counter()
            work()
            if fast:
                torch.cuda.synchronize()
            times[index] = min(times[index], time.perf_counter() - start)
    rate, *own = (1e-9 * flops / best for (_, flops), best in zip(works, times, strict=True))
    rows = [
        {"unet": unet, "batch": batch, "gflops": round(reached, 1), "share": round(reached / rate, 3)}
        for (unet, batch), reached in zip(networks, own, strict=True)
    ]
    return {"matmul_gflops": round(rate, 1), "forward": rows}


def table(rows: list[dict]) -> str:
    """The rows for people: seconds per unit and how many times ours."""
    lines = []
    for row in rows:
        if "error" in row:
            lines.append(f"{row['case']:36}{row['side']:15}  {row['error']}")
            continue
        between = "{:.2f} to {:.2f}".format(*row["range"])
        lines.append(f"{row['case']:36}{row['side']:15}{row['median']:>10.4g} s a {row['unit']:8}{row['ratio']:>8.2f}"
                     f"{between:>16}{row.get('memory', ''):>8}")  # fmt: skip
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", metavar="PYTHON", help="interpreter of the environment that peers.sh makes")
    parser.add_argument("--cases", default="", help="only cases with one of these words in their names, or: curve")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--save", metavar="NAME", help="write benchmarks/results/NAME.json; cases that this machine "
                        "measured there today stay")  # fmt: skip
    return parser.parse_args()


def chosen_cases(words: list[str]) -> list[str]:
    """The cases that the words name; without words all but the slow ones and the curves."""
    from cases import CASES, CURVES

    def meant(name: str) -> bool:
        needed = {word for word in SLOW if word in name}
        others = [word for word in words if word not in SLOW]
        named = any(word in name for word in others) if others else needed or not words
        return bool(needed <= set(words) and named)

    curves = [name for name in CURVES if words and ("curve" in words or meant(name))]
    return [name for name in (*PROGRAMS, *CASES) if meant(name)] + curves


def main() -> None:
    """Measure, print, and with ``--save`` keep."""
    options = arguments()
    pythons = {"ours": sys.executable, "bare": sys.executable, "transformers": sys.executable}
    if options.peers:
        pythons |= {"imagen-pytorch": options.peers, "diffusers": options.peers}
    import torch
    from cases import CASES, CURVES
    from models import machine

    order = [*PROGRAMS, *CASES, *CURVES]
    about = {
        "date": datetime.date.today().isoformat(),
        "machine": machine(options.device),
        "threads": options.threads,
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    print(json.dumps(about, indent=1))
    print(f"{'':36}{'':15}{'median':>10}{'':13}{'times ours':>11}{'range':>13}{'MB':>8}")
    about["rows"] = []
    about |= measured_before(about, options.save)
    for case in chosen_cases([word for word in options.cases.split(",") if word]):
        found = list((started if case in PROGRAMS else measured)(case, pythons, options))
        others = [row for row in about["rows"] if row["case"] != case]
        about["rows"] = sorted([*others, *found], key=lambda row: order.index(row["case"]))
        print(table(found), flush=True)
        keep(about, options.save)
    about["ceiling"] = ceiling(options)
    print(json.dumps(about["ceiling"], indent=1))
    keep(about, options.save)


def measured_before(about: dict, name: str | None) -> dict:
    """What the file holds that is to be written, if it was measured on this day by the same machine and versions."""
    path = HERE / "results" / f"{name}.json"
    before = json.loads(path.read_text()) if name and path.exists() else {}
    same = all(before.get(key) == about[key] for key in about if key not in ("rows", "load"))
    return before if same else {}


def keep(result: dict, name: str | None) -> None:
    """Write what is known so far."""
    if name:
        (HERE / "results" / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
