"""The measurements of benchmarks/results as a page.

python benchmarks/report.py     # writes docs/speed.md, and the sentence of the README
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE, README = HERE.parent / "docs" / "speed.md", HERE.parent / "README.md"
#: between these lines of the README
BEGIN, END = "<!-- written by benchmarks/report.py -->\n", "<!-- end -->\n"
#: the cases that the README names, and in which words: "{}" is how many times our time the other package takes
README_CASES = (
    ("guided step, README", "a sampling step takes them {imagen-pytorch} and {diffusers} times as long"),
    ("training, README", "a training step {imagen-pytorch} and {diffusers} times"),
    ("a finished picture, README", "an image, of 20 steps here and 250 there, {imagen-pytorch} times (imagen-pytorch)"),
)
PEERS = ("imagen-pytorch", "diffusers", "transformers", "bare", "torch alone")

INTRO = """# Speed

Written by `python benchmarks/report.py` from [benchmarks/results](../benchmarks/results); each table says which command
measured it, when and where. A ratio is how many times our time the other side took in the same run: the median over the
rounds, with the smallest and the largest in brackets. On a CPU the clock is CPU time. Other machines give other
numbers: run the commands.
"""
COMPARED = """## Beside imagen-pytorch and diffusers
`benchmarks/peers.sh /tmp/peers; python benchmarks/compare.py --peers /tmp/peers/bin/python`

Every side has networks of the same widths (diffusers: as many parameters), float32 and eager mode unless the name says
otherwise; bf16 is autocast for all, "compiled" and what says reuse is ours alone. A guided step of the README's network
is one of 20 for an image, or of 21 with reuse. "bare" is loss and gradient alone, without optimizer, averages and
checks; a checkpoint of ours is written with a checksum, read back and sealed, which during a training happens in the
background.
"""
COMPILED = """Compiled (`--cases compiled`), which gains little on a CPU: an eager network already reaches the share
above of what the machine can multiply, and what the compiler writes for the rest takes as long as the kernels of torch.
"""
GPU = """## On a GPU
`python benchmarks/compare.py --device cuda --peers ... --cases bf16,defaults,elucidated,cascade,compiled,graphs,large`

"large" is the base network of the paper at half its width, 416 million parameters; "compiled" is `compile=True`,
"graphs" `compile="reduce-overhead"`, of ours alone; images of 4 steps; the clock is wall time, and the memory that of
the GPU. `pytest -m slow tests/test_gpu.py` checks that graphs generate the same images; on this machine it has not run
to its end yet. Since this was measured, weights are rounded once per stage and no longer at every step.
"""
CURVES = """## How the time grows
`python benchmarks/compare.py --peers /tmp/peers/bin/python --cases curve`, a small network of three levels
"""
QUALITY = """## What fewer evaluations cost in quality
`make demo; python benchmarks/quality.py runs/demo/imagen.pt`

"ddpm" with 250 steps is what imagen-pytorch samples with. `cache_interval`: every n-th call of the network is
whole, the others compute the level with the largest maps only (Ma et al. 2024). Sampled from the first stage of `make
demo`, with its guidance; change: mean absolute difference from the first row's images, of a range of 1, where both
start from the same noise and add none; R@1 and R@10: how often the caption is found by the image; FD: Frechet
distance of an image classifier's features from those of the real images.
"""
SOLVERS = """## How near samplers come to the exact solution
`python benchmarks/solvers.py`

A guided problem whose denoiser is known exactly, in the plane: Frechet distance to the solution of the probability-flow
equation, by the number of evaluations. The scale of the data is 1.
"""
OVERHEAD = """## What the trainer adds to loss and gradient
`python benchmarks/trainer_overhead.py`: shares of the time of loss and gradient, both in one process in turns; the
update is Adam, checks and averages at every step
"""
SAVING = """## What a checkpoint costs a training
`python benchmarks/saving.py`: seconds of a step, of the step that follows a save, and of the call that saves
"""
HIDDEN = """## Costs that no step shows
`python benchmarks/hidden_costs.py --beside CHECKOUT`: each number in a process of its own, in turns with an earlier
version
"""
MEMORY = """## Memory of videos
`python benchmarks/video_memory.py`: MiB that a 64x64 clip takes beyond a single frame
"""


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A table in Markdown."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def seconds(value: float) -> str:
    """A time with three digits and a fitting unit."""
    return f"{value:.3g} s" if value >= 1 else f"{value * 1000:.3g} ms"


def when(result: dict[str, Any]) -> str:
    """Date and machine."""
    count = result.get("threads")
    more = [f"{count} thread{'s' * (count > 1)}", f"torch {result['torch']}"] if count else []
    return ", ".join([result["date"], result["machine"], *more]) + "\n"


def named(text: str) -> str:
    """A case or unit of the results, which say picture, as the pages say it."""
    return text.replace("picture", "image")


def compared(result: dict[str, Any]) -> str:
    """A line per case: our time, and the others in times ours."""
    cases: dict[str, dict[str, dict[str, Any]]] = {}
    for row in result["rows"]:
        cases.setdefault(row["case"], {})[row["side"]] = row
    others = [side for side in PEERS if any(side in sides for sides in cases.values())]

    def ratio(row: dict[str, Any] | None) -> str:
        if row is None or "error" in row:
            return "" if row is None else "fails"
        low, high = row["range"]
        memory = f", {row['memory']} MB" if "memory" in row else ""
        return f"{row['ratio']:.2f} ({low:.2f} to {high:.2f}){memory}"

    def line(case: str, sides: dict[str, dict[str, Any]]) -> list[str]:
        own = sides["ours"]
        memory = f", {own['memory']} MB" if "memory" in own else ""
        unit = named(own["unit"])
        time = f"{seconds(own['median'])} {'an' if unit[0] in 'aeiou' else 'a'} {unit}"
        return [named(case), f"{time}{memory}", *(ratio(sides.get(side)) for side in others)]

    return table(["work", "ours", *others], [line(case, sides) for case, sides in cases.items() if "ours" in sides])


def reached(result: dict[str, Any]) -> str:
    """What forward passes reach of the machine's ceiling."""
    if "ceiling" not in result:
        return "This run ended before its last cases: what is not in the table was not measured on this machine.\n"
    ceiling = result["ceiling"]
    rows = [[row["unet"], row["batch"], row["gflops"], f"{100 * row['share']:.0f} %"] for row in ceiling["forward"]]
    most = f"of a large product of matrices ({ceiling['matmul_gflops']:g} GFLOP/s)"
    return table(["forward pass", "images of 64x64", "GFLOP/s", most], rows)


def page(folder: Path) -> str:
    """The page of the results in a folder."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    parts = [INTRO]
    if "compare" in found:
        parts += [COMPARED, when(found["compare"]), compared(found["compare"]), reached(found["compare"])]
    if "compiled" in found:
        parts += [COMPILED, when(found["compiled"]), compared(found["compiled"])]
    if "gpu" in found:
        parts += [GPU, when(found["gpu"]), compared(found["gpu"]), reached(found["gpu"])]
    if "curves" in found:
        parts += [CURVES, when(found["curves"]), compared(found["curves"])]
    if "quality" in found:
        result = found["quality"]
        rows = [["" if value is None else value for value in row.values()] for row in result["rows"]]
        limits = "; ".join(
            f"{name}: R@1 {result[key]['R@1']:g}, R@10 {result[key]['R@10']:g}"
            for key, name in (("chance", "chance"), ("ceiling", "real images"))
        )
        error = 0.5 / result["pictures"] ** 0.5
        about = (
            f"guidance {result['cond_scale']:g}; {result['pictures']} images, so that fractions are known to "
            f"{error:.2f} (one standard error); {limits}\n"
        )
        parts += [QUALITY, when(result), table(result["rows"][0], rows), about]
    if "solvers" in found:
        result = found["solvers"]
        counts = list(dict.fromkeys(count for row in result["rows"] for count in row if count != "sampler"))
        rows = [
            [row["sampler"], *(f"{row[count]:.3f}" if count in row else "" for count in counts)]
            for row in result["rows"]
        ]
        parts += [SOLVERS, when(result), table(["sampler", *counts], rows)]
    if "trainer_overhead" in found:
        result = found["trainer_overhead"]
        shares = {name: each for name, each in result["rows"].items() if name != "seconds"}
        cells = [
            f"{100 * e['median']:.1f} % ({100 * e['range'][0]:.1f} to {100 * e['range'][1]:.1f})"
            for e in shares.values()
        ]
        parts += [OVERHEAD, when(result), table(shares, [cells])]
    if "saving" in found:
        result = found["saving"]
        kinds = result["rows"]
        rows = [[kind, *(f"{value:.3g}" for value in row.values())] for kind, row in kinds.items()]
        parts += [SAVING, when(result), table(["save", *next(iter(kinds.values()))], rows)]
    if "hidden_costs" in found:
        result = found["hidden_costs"]
        rows = [[name, *(f"{value:g}" for value in row.values())] for name, row in result["rows"].items()]
        about = when(result).replace("\n", f"; number of measurements: {result['repeats']}\n")
        parts += [HIDDEN, about, table(["cost", *next(iter(result["rows"].values()))], rows)]
    if "video_memory" in found:
        result = found["video_memory"]
        kinds = result["peak MiB above one frame"]
        counts = next(iter(kinds.values()))
        rows = [[kind, *(f"{value:.0f}" for value in values.values())] for kind, values in kinds.items()]
        parts += [MEMORY, when(result), table(["frames", *counts], rows)]
    return "\n".join(parts)


def block(folder: Path) -> str:
    """Return the README's sentence: how many times our time the others take."""
    result = json.loads((folder / "compare.json").read_text())
    ratios: dict[str, dict[str, str]] = {}
    for row in result["rows"]:
        ratios.setdefault(row["case"], {})[row["side"]] = f"{row['ratio']:.1f}"
    said = "; ".join(words.format(**ratios[case]) for case, words in README_CASES)
    text = f"Beside lucidrains/imagen-pytorch and diffusers, with networks of the same widths on a CPU: {said}."
    return "\n".join(textwrap.wrap(f"{text} {when(result)}".rstrip(), 118)) + "\n"


def with_block(text: str, block: str) -> str:
    """A text whose part between `BEGIN` and `END` is this one."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + "\n" + block + "\n" + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(page(HERE / "results"))
    README.write_text(with_block(README.read_text(), block(HERE / "results")))
    print(PAGE, README, sep="\n")
