"""The package beside what a user would pick instead: medians, and ratios within one run.

    python benchmarks/compare.py --peers PYTHON [--cases readme,default] [--rounds 5] [--threads 1] [--save]

``PYTHON`` is the interpreter of an environment with imagen-pytorch, diffusers and transformers (`benchmarks/peers.sh`
makes one); without it only this package is measured. Every side of a case lives in a process of its own, and they are
measured in turns (A B C, A B C ...), so that a noisy machine hits all alike; a ratio is the median over the rounds of
the ratio within a round. On a loaded machine CPU time with one thread is what counts.
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
from pathlib import Path

from sides import CASES

HERE = Path(__file__).parent
PROGRAMS = {
    "import": (["-c", "import imagen_pytorch; imagen_pytorch.Imagen, imagen_pytorch.ImagenTrainer"], "import"),
    "imagen --help": (["-m", "imagen_pytorch", "--help"], "help"),
}


class Side:
    """A process that measures one case."""

    def __init__(self, name: str, case: str, python: str, threads: int) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
        environment.pop("PYTHONPATH", None)
        where = {"cwd": HERE.parent} if name == "ours" else {"cwd": HERE}
        self.name, self.seconds = name, {"wall": [], "cpu": []}
        self.process = subprocess.Popen(
            [python, str(HERE / "sides.py"), name, case],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
            **where,
        )
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


def measured(case: str, pythons: dict[str, str], rounds: int, threads: int) -> list[dict]:
    """One row per side of a case."""
    sides = []
    for name in CASES[case][2]:
        if name in pythons:  # one after the other, so that nobody's warm-up disturbs the others'
            sides.append(Side(name, case, pythons[name], threads))
    for _ in range(rounds):
        for side in sides:
            if "error" not in side.about:
                side.measure()
    rows = []
    for side in sides:
        side.close()
        row = {"case": case, "side": side.name, **{key: side.about.get(key) for key in ("error", "version", "peak_mb")}}
        for clock, seconds in side.seconds.items():
            if not seconds or not sides[0].seconds[clock]:
                continue
            ratios = [other / own for other, own in zip(seconds, sides[0].seconds[clock], strict=True)]
            row[clock] = {"median": statistics.median(seconds), "ratio": statistics.median(ratios),
                          "range": [min(ratios), max(ratios)]}  # fmt: skip
        rows.append(row)
    return rows


def started(case: str, pythons: dict[str, str], rounds: int) -> list[dict]:
    """CPU seconds of whole programs: interpreter, imports and the work."""
    arguments, _ = PROGRAMS[case]
    offline = "import sys; sys.path.insert(0, {here!r}); import sides; sides._package('imagen-pytorch'); "
    seconds: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, python in pythons.items():
            if name == "diffusers" and case != "import":
                continue
            given = arguments
            if name == "imagen-pytorch":
                tail = (
                    "import imagen_pytorch.cli as c; c.main(['--help'], standalone_mode=False)"
                    if "help" in case
                    else ""
                )
                given = ["-c", offline.format(here=str(HERE)) + tail]
            elif name == "diffusers":
                given = ["-c", "from diffusers import UNet2DConditionModel, DDPMScheduler"]
            before = os.times()
            done = subprocess.run([python, *given], cwd=HERE.parent if name == "ours" else HERE, capture_output=True)
            after = os.times()
            if done.returncode == 0:
                spent = after.children_user - before.children_user + after.children_system - before.children_system
                seconds.setdefault(name, []).append(spent)
    own = seconds.get("ours", [])
    return [
        {
            "case": case,
            "side": name,
            "cpu": {
                "median": statistics.median(found),
                "ratio": statistics.median(other / mine for other, mine in zip(found, own, strict=False)),
                "range": [min(found) / max(own), max(found) / min(own)],
            },
        }  # fmt: skip
        for name, found in seconds.items()
    ]


def ceiling() -> dict[str, float]:
    """GFLOP/s of a large product of matrices on one thread, what a forward pass reaches of it, and its own rate."""
    program = """
import sys, json, time, torch
sys.path.insert(0, sys.argv[1])
from sides import UNETS, TOKENS, WIDTH
from imagen_pytorch import Unet
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
torch.set_num_threads(1)
def best(work):
    work()
    times = []
    for _ in range(5):
        start = time.process_time(); work(); times.append(time.process_time() - start)
    return min(times)
a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
rate = 2 * 1024**3 / best(lambda: a @ b) / 1e9
net = Unet(**UNETS["readme"], text_embed_dim=WIDTH).eval()
x, t, e = torch.randn(8, 3, 64, 64), torch.randn(8), torch.randn(8, TOKENS, WIDTH)
with torch.inference_mode():
    known = net.condition(batch=8, size=(64, 64), text_embeds=e)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        net(x, t, known)
    own = counter.get_total_flops() / best(lambda: net(x, t, known)) / 1e9
print(json.dumps({"matmul_gflops": rate, "forward_gflops": own, "share": own / rate}))
"""
    done = subprocess.run([sys.executable, "-c", program, str(HERE)], cwd=HERE.parent, capture_output=True, text=True)
    return json.loads(done.stdout) if done.returncode == 0 else {"error": done.stderr[-300:]}


def table(rows: list[dict]) -> str:
    """The rows for people: CPU seconds per unit and how many times ours."""
    lines = [f"{'case':30}{'side':16}{'CPU s':>10}{'times ours':>12}{'range':>16}{'peak MB':>9}"]
    for row in rows:
        if row.get("error") or "cpu" not in row:
            lines.append(f"{row['case']:30}{row['side']:16}  {row.get('error')}")
            continue
        cpu = row["cpu"]
        between = f"{cpu['range'][0]:.2f} to {cpu['range'][1]:.2f}"
        lines.append(f"{row['case']:30}{row['side']:16}{cpu['median']:>10.4g}{cpu['ratio']:>12.2f}{between:>16}"
                     f"{row.get('peak_mb') or '':>9}")  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and with ``--save`` keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", help="interpreter of the alternatives' environment")
    parser.add_argument("--cases", default="", help="only cases with one of these words in their names")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/compare.json")
    options = parser.parse_args()
    pythons = {"ours": sys.executable}
    if options.peers:
        pythons |= {"imagen-pytorch": options.peers, "diffusers": options.peers}
    words = [word for word in options.cases.split(",") if word]
    rows = []
    for case in [*PROGRAMS, *CASES]:
        # compiling takes minutes: only when it is asked for
        chosen = any(word in case for word in words) if words else "compiled" not in case
        if not chosen:
            continue
        found = (
            started(case, pythons, 3) if case in PROGRAMS else measured(case, pythons, options.rounds, options.threads)
        )
        rows += found
        print(table(found), flush=True)
    report = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "threads": options.threads,
        "python": platform.python_version(),
        "finished": time.strftime("%H:%M"),
        "ceiling": ceiling() if not words else None,
        "rows": rows,
    }
    print(json.dumps({key: value for key, value in report.items() if key != "rows"}))
    if options.save:
        (HERE / "results" / "compare.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
