"""Peak memory of a video network against the number of frames: one fresh process per measurement.

python benchmarks/video_memory.py            # prints the table
python benchmarks/video_memory.py --save     # and writes it, dated, to benchmarks/results/video_memory.json
"""

from __future__ import annotations

import argparse
import datetime
import json
import resource
import subprocess
import sys
from pathlib import Path

COUNTS = (4, 8, 16, 32, 64)
KINDS = ("forward", "training")
RESULT = Path(__file__).parent / "results" / "video_memory.json"


def measure(frames: int, kind: str) -> float:
    """MiB by which a forward pass (or a forward and a backward pass) of one 64x64 clip raises the process's peak."""
    import torch

    from imagen_pytorch import Unet3D

    torch.set_num_threads(1)
    unet = Unet3D(dim=32, dim_mults=(1, 2, 4), layer_attns=(False, False, True), attn_heads=4, attn_dim_head=32,
                  text_embed_dim=64)  # fmt: skip
    unet.final_conv.weight.data.normal_(std=0.02)

    def run(count: int) -> None:
        clip, time, text = torch.randn(1, 3, count, 64, 64), torch.zeros(1), torch.randn(1, 8, 64)
        with torch.set_grad_enabled(kind == "training"):
            answer = unet(clip, time, text_embeds=text)
        if kind == "training":
            answer.square().mean().backward()

    run(1)  # what the libraries and the gradients take whatever the number of frames
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(frames)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main() -> None:
    """Measure all and print a table with the growth per doubling."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", action="store_true", help="write the result, dated")
    parser.add_argument("--one", nargs=2, metavar=("FRAMES", "KIND"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(measure(int(options.one[0]), options.one[1]))
        return
    rows: dict[str, dict[str, float]] = {}
    for kind in KINDS:
        for count in COUNTS:
            command = [sys.executable, __file__, "--one", str(count), kind]
            rows.setdefault(kind, {})[str(count)] = float(subprocess.check_output(command, text=True))
    print("one clip of 64x64: MiB above the peak with one frame, and that for each further frame (constant if linear)")
    print("frames   " + "".join(f"{count:>16}" for count in COUNTS))
    for kind, found in rows.items():
        cells = (f"{value:>8.0f} {f'({value / (int(count) - 1):.1f})':>7}" for count, value in found.items())
        print(f"{kind:9}" + "".join(cells))
    if options.save:
        from models import machine

        RESULT.parent.mkdir(exist_ok=True)
        facts = {"date": datetime.date.today().isoformat(), "machine": machine()}
        RESULT.write_text(json.dumps({**facts, "peak MiB above one frame": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
