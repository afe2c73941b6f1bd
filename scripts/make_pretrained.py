"""Put a pretrained model into the package: join its stages, export it, and measure it.

    imagen train --config CONFIG --unet 1 --output base        # the two stages may train at the same time
    imagen train --config CONFIG --unet 2 --output upsampler
    python scripts/make_pretrained.py emoji --config CONFIG --stages base upsampler

The folder of the model then holds ``model.safetensors`` (averaged weights in half precision), the configuration, the
log of each stage, ``eval.json`` with all figures, and sheets of images. The figures in ``model_card.md`` are written
between its two markers, the words around them by hand. The prompts of ``prompts.txt`` are in no training caption.
Without ``--stages`` the model that is there is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from imagen_pytorch import load_imagen_from_checkpoint
from imagen_pytorch.checkpoint import export_model
from imagen_pytorch.cli._data import open_data
from imagen_pytorch.cli._demo import Options, captions_of, evenly_spaced, stack_items
from imagen_pytorch.cli._demo_images import ImageDemo
from imagen_pytorch.cli._presets import find_config
from imagen_pytorch.configs import TrainingConfig
from imagen_pytorch.pretrained import FOLDER, PROMPTS, WEIGHTS
from imagen_pytorch.signatures import parse, read_config

START, END = "<!-- figures: scripts/make_pretrained.py -->", "<!-- end of figures -->"
#: Splits of emoji64 that the model has not learned, the number of images that are drawn of each split, and of real ones
#: that they are compared with.
SPLITS, DRAWN, REFERENCE = ("pair", "concept"), 200, 1000
#: Width of the frame of an image that should be white, in pixels.
FRAME = 2
#: Number of images that are looked at for it.
WHITE = 48


def joined(config: TrainingConfig, stages: list[Path], path: Path) -> None:
    """Write one checkpoint with U-Net i of the i-th checkpoint, without what only training needs."""
    with tempfile.TemporaryDirectory() as folder:
        for number, stage in enumerate(stages, 1):
            trainer = config.create(accelerate_cpu=True, verbose=False)
            trainer.load(stage / "imagen.pt")
            trainer.save(Path(folder) / f"{number}.pt", unet_number=number, without_optim_and_sched=True)
        trainer = config.create(accelerate_cpu=True, verbose=False)
        for number in range(1, len(stages) + 1):
            trainer.load(Path(folder) / f"{number}.pt")
        trainer.save(path, without_optim_and_sched=True)


def by_the_demo(model: Any) -> dict[str, Any]:
    """Return the figures that `imagen demo` prints for a model that it trained, for this one.

    The judge learns the demo's images, and finds each generated image's caption among all of theirs.
    """
    values = read_config(find_config("emoji").path)
    demo = ImageDemo(Options(None, "emoji", None, 96, 0, "", "cpu", True), values, parse(TrainingConfig, values))
    demo.training = SimpleNamespace(trainer=model)
    demo.imagen, demo.cond_scale, demo.outputs = model, None, SimpleNamespace(arguments=dict)
    demo.data = open_data(demo.config, model.stages[-1].size)
    demo.held_out = demo._other_split(demo.held_out_split())
    report = demo.judge()
    real, captions = stack_items(demo.data, evenly_spaced(len(captions_of(demo.data)), WHITE))
    images = model.sample(texts=captions, seed=list(range(WHITE)), max_batch_size=16, use_tqdm=False)
    report["white"], report["white_real"] = white_offset(images), white_offset(real)
    return report


def white_offset(images: torch.Tensor) -> float:
    """Return the mean absolute difference from white in the frames of images that have a white background."""
    inner = torch.zeros(images.shape[-2:], dtype=torch.bool)
    inner[FRAME:-FRAME, FRAME:-FRAME] = True
    return float((1 - images[..., ~inner]).abs().mean())


def evaluated(folder: Path, split: str, output: Path) -> dict[str, Any]:
    """Return the contents of ``eval.json`` of `imagen eval` on a split of the data, for the model in a folder."""
    data = json.loads((folder / "config.json").read_text())["dataset_name"]
    words = ["--data", data, "--split", split, "--limit", str(DRAWN), "--output", str(output)]
    if split in SPLITS:
        words += ["--metrics", "retrieval"]
    elif split == "train":
        words += ["--metrics", "kid,upsampler", "--reference", str(REFERENCE)]
    subprocess.run([sys.executable, "-m", "imagen_pytorch", "eval", WEIGHTS, *words], check=True, cwd=folder)
    return json.loads((output / "eval.json").read_text())


def machine_name() -> str:
    """Return the class of the processor, in words."""
    known = Path("/proc/cpuinfo")
    name = re.search(r"model name\s*: (.*)", known.read_text()) if known.exists() else None
    return f"{name[1] if name else platform.machine()} (CPU), {os.cpu_count()} cores"


def drawn_sheet(folder: Path, output: Path) -> None:
    """Write a sheet of the prompts in the folder of a model, one image or clip each, with seed 0."""
    words = ["--prompts", PROMPTS, "--seed", "0", "--grid", "--output", f"{output}/samples/"]
    command = [sys.executable, "-m", "imagen_pytorch", "sample", "--model", WEIGHTS, *words]
    subprocess.run(command, check=True, cwd=folder)
    for sheet in output.glob("samples/prompts-grid.*"):
        shutil.copy(sheet, folder / f"prompts{sheet.suffix}")


def check_prompts(folder: Path) -> None:
    """Refuse prompts that the model has learned.

    Raises:
        ValueError: a prompt that is a caption of the training data.
    """
    config = parse(TrainingConfig, read_config(folder / "config.json"))
    learned = set(captions_of(open_data(config, (8, 8))))
    if known := [prompt for prompt in (folder / PROMPTS).read_text().splitlines() if prompt in learned]:
        raise ValueError(f"{PROMPTS} has captions of the training data: {known}")


def percent(value: float, interval: Any = None) -> str:
    """Return a fraction as a percentage, with its interval if there is one."""
    ends = "" if interval is None else f" ({100 * interval[0]:.0f} to {100 * interval[1]:.0f})"
    return f"{100 * value:.0f} %{ends}"


def retrieval_row(name: str, entry: dict[str, Any]) -> str:
    """Return R@1 of generated images, and of real ones and their spoiled versions beside it, as a row of Markdown."""
    references = entry.get("references", {})
    others = [references[key]["R@1"] if key in references else None for key in ("enlarged", "noise 0.04")]
    interval = entry.get("intervals", {}).get("generated", {}).get("R@1")
    shown = [percent(entry["generated"]["R@1"], interval), percent(entry["ceiling"]["R@1"])]
    shown += ["" if value is None else percent(value) for value in others]
    chance = f"{100 * entry['chance']['R@1']:.1f} %"
    return " | ".join([f"| {name}", str(entry["pictures"]), str(entry["candidates"]), *shown, f"{chance} |"])


def written(figures: dict[str, Any]) -> str:
    """Return the figures of a model as Markdown."""
    rows = [f"Measured on {figures['date']} on {figures['machine']}.", ""]
    rows += image_rows(figures) if "demo" in figures else clip_rows(figures["evaluations"]["test"]["figures"])
    return "\n".join(rows)


def clip_rows(figures: dict[str, Any]) -> list[str]:
    """Return the figures of a model of moving digits as rows of Markdown."""
    motion, digits = figures["motion"], figures["digits"]
    rows = [
        f"| of {motion['clips']} guided clips for captions of the test split | generated | real | chance |",
        "| --- | --- | --- | --- |",
        f"| move as the caption says | {percent(motion['generated'], (motion['low'], motion['high']))} | "
        f"{percent(motion['real'])} | {percent(motion['chance'])} |",
    ]
    for key, words in (("most_frames", "in most frames"), ("every_frame", "in every frame")):
        generated, real = digits[key]["generated"], digits[key]["real"]
        shown = percent(generated["value"], (generated["low"], generated["high"]))
        rows.append(
            f"| the caption's digit is recognised {words} | {shown} | {percent(real['value'])} | "
            f"{percent(digits['chance'])} |"
        )
    each = ", ".join(f"{digit}: {percent(value)}" for digit, value in digits["by_digit"].items())
    return [*rows, "", f"In most frames, by digit: {each}."]


def image_rows(figures: dict[str, Any]) -> list[str]:
    """Return the figures of a model of images as rows of Markdown."""
    demo = figures["demo"]["64x64"]
    trained = figures["evaluations"]["train"]["figures"]
    rows = [
        "Beside generated images stand real ones, real ones that were shrunk and enlarged again, and real ones with "
        "noise.",
        "",
        "| captions | images | captions to choose from | right one first | real | shrunk | noise 0.04 | chance |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        retrieval_row("learned, by the judge of `imagen demo`", demo["trained"]),
        retrieval_row("of held-out images, by the same judge", demo["held_out"]),
    ]
    for split in SPLITS:
        entry = figures["evaluations"][split]["figures"]["retrieval"]
        rows.append(retrieval_row(f"split `{split}`, by `emoji64-probe`", entry))
    rows += ["", "| figure | generated | for comparison |", "| --- | --- | --- |"]
    for key, entry in trained.items():
        if key.startswith("kid/"):
            halves = entry["real_halves"]["value"]
            value = f"{entry['value']:.3f} ({entry['low']:.3f} to {entry['high']:.3f})"
            rows.append(f"| KID over {key[4:]} | {value} | halves of the real images: {halves:.3f} |")
    upsampler = trained.get("upsampler/2", {})
    for key, entry in upsampler.items():
        if isinstance(entry, dict) and "network" in entry:
            network, bicubic = (each["value"] if isinstance(each, dict) else each for each in list(entry.values())[:2])
            rows.append(f"| upsampler of real small images, {key} | {network:.3f} | bicubic: {bicubic:.3f} |")
    white, real = figures["demo"]["white"], figures["demo"]["white_real"]
    return [*rows, f"| white backgrounds, mean distance from white | {white:.4f} | real: {real:.4f} |"]


def measured(folder: Path) -> dict[str, Any]:
    """Return all figures of the model in a folder; the sheets are written beside it."""
    model = load_imagen_from_checkpoint(folder / WEIGHTS).eval()
    figures: dict[str, Any] = {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": f"{machine_name()}, torch {torch.__version__}",
    }
    if not model.is_video:
        check_prompts(folder)
        figures["demo"] = by_the_demo(model)
    figures["evaluations"] = {}
    with tempfile.TemporaryDirectory() as name:
        output = Path(name)
        drawn_sheet(folder, output)
        for split in ("test",) if model.is_video else ("train", *SPLITS):
            figures["evaluations"][split] = evaluated(folder, split, output / split)
            shutil.copy(output / split / "eval.png", folder / f"{split}.png")
    return figures


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the model")
    parser.add_argument("--stages", nargs="+", type=Path, help="output folders of `imagen train`, one per U-Net")
    parser.add_argument("--config", type=Path, help="the configuration that they were trained with")
    parser.add_argument("--folder", type=Path, help="of the model  [default: in the package]")
    given = parser.parse_args()
    folder = given.folder or FOLDER / given.name
    if given.stages:
        folder.mkdir(parents=True, exist_ok=True)
        config = parse(TrainingConfig, read_config(given.config))
        with tempfile.TemporaryDirectory() as temporary:
            whole = Path(temporary) / "imagen.pt"
            joined(config, given.stages, whole)
            export_model(whole, folder / WEIGHTS, overwrite=True)
        shutil.copy(given.config, folder / "config.json")
        for number, stage in enumerate(given.stages, 1):
            shutil.copy(stage / "metrics.jsonl", folder / f"metrics_unet{number}.jsonl")
            shutil.copy(stage / "loss.png", folder / f"loss_unet{number}.png")
    figures = measured(folder)
    (folder / "eval.json").write_text(json.dumps(figures, indent=1) + "\n")
    write_card(folder, figures)


def write_card(folder: Path, figures: dict[str, Any]) -> None:
    """Write the figures of a model between the markers of its card."""
    card = folder / "model_card.md"
    words = card.read_text() if card.exists() else f"# {folder.name}\n\n{START}\n{END}\n"
    before, after = words.partition(START)[0], words.partition(END)[2]
    card.write_text(f"{before}{START}\n{written(figures)}\n{END}{after}")


if __name__ == "__main__":
    main()
