"""What fewer evaluations of the network cost in quality: a fast sampler, fewer steps, reused inner maps.

    make demo
    python benchmarks/quality.py runs/demo/imagen.pt           # prints the table
    python benchmarks/quality.py runs/demo/imagen.pt --save    # and writes it, dated, to benchmarks/results

The first stage of the demo's model draws captions that it was trained on, several times each, with the demo's guidance.
Quality is the judge of ``imagen demo``: how often the caption of a picture is found among all captions (R@1, R@10), by
a probe that learned from real pictures; and the Frechet distance of the judge's features from those of the real
pictures (FD). The change is the mean absolute difference from the picture of the same seed that the first setting
draws, where both draw the same noise. Settings take turns batch by batch; time is CPU time.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import torch
from models import machine
from solvers import frechet

from imagen_pytorch.checkpoint import load_imagen_from_checkpoint
from imagen_pytorch.cli._demo import evenly_spaced, stack_items
from imagen_pytorch.cli._demo_images import JUDGE_LEARNS
from imagen_pytorch.data import open_source
from imagen_pytorch.evaluation.features import feature_extractor
from imagen_pytorch.evaluation.retrieval import caption_retrieval, train_probe
from imagen_pytorch.images import resize


class Setting(NamedTuple):
    """Arguments of `sample` that decide about speed."""

    sampler: str
    steps: int
    cache_interval: int = 1


#: the first is what the others are compared with; 250 ancestral steps are what users of imagen-pytorch take
SETTINGS = (
    *(Setting("dpmpp_2m", 24, interval) for interval in (1, 2, 3, 5)),
    *(Setting("dpmpp_2m", steps) for steps in (20, 16, 12, 8)),
    Setting("pc2", 20),
    Setting("ddim", 20),
    Setting("dpmpp_2m_sde", 20),
    *(Setting("ddpm", 24, interval) for interval in (1, 3)),
    *(Setting("ddpm", steps) for steps in (20, 16, 12, 8, 50, 250)),
)
#: samplers that add noise of their own on the way
NOISY = ("dpmpp_2m_sde", "ddpm")
BATCH = 24
RESULT = Path(__file__).parent / "results" / "quality.json"
CONFIG = Path(__file__).parents[1] / "configs" / "emoji.json"


def main() -> None:
    """Draw, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="of make demo")
    parser.add_argument("--count", type=int, default=576, help="captions")
    parser.add_argument("--draws", type=int, default=2, help="pictures of a caption, of each setting")
    parser.add_argument("--cond-scale", type=float, default=1.5)
    parser.add_argument("--save", action="store_true", help="write the result, dated")
    options = parser.parse_args()
    torch.set_num_threads(1)

    imagen = load_imagen_from_checkpoint(options.checkpoint, load_ema_if_available=True)
    given = json.loads(CONFIG.read_text())["dataset"]
    chosen = {name: given[name] for name in ("split", "styles", "groups")}
    data = open_source("emoji64", image_size=imagen.stages[-1].size[0], **chosen)
    real, known = stack_items(data, evenly_spaced(len(data), JUDGE_LEARNS))
    pictures, texts = stack_items(data, evenly_spaced(len(data), options.count))
    asked = texts * options.draws
    made: dict[Setting, list[torch.Tensor]] = {setting: [] for setting in SETTINGS}
    seconds: dict[Setting, list[float]] = {setting: [] for setting in SETTINGS}
    for first in range(0, len(asked), BATCH):
        some = asked[first : first + BATCH]
        for setting in SETTINGS:
            start = time.process_time()
            found = imagen.sample(
                texts=some,
                seed=list(range(first, first + len(some))),
                cond_scale=options.cond_scale,
                **setting._asdict(),
                stop_at_unet_number=1,
                use_tqdm=False,
            )
            seconds[setting].append(time.process_time() - start)
            made[setting].append(found)

    size = imagen.stages[0].size
    extractor, encoder = feature_extractor(), imagen.text_encoder
    probe = train_probe(resize(real, size), known, extractor=extractor, encoder=encoder, seed=0)
    features = extractor(resize(pictures, size)).double()
    rows, whole = [], torch.cat(made[SETTINGS[0]])
    for setting in SETTINGS:
        drawn = torch.cat(made[setting])
        judged = [
            caption_retrieval(probe, each, texts, candidates=[*texts, *known], real=resize(pictures, size))
            for each in drawn.split(len(texts))
        ]
        shares = {name: statistics.mean(each["generated"][name] for each in judged) for name in ("R@1", "R@10")}
        ratios = [own / other for own, other in zip(seconds[SETTINGS[0]], seconds[setting], strict=True)]
        rows.append(
            {
                **setting._asdict(),
                "speed": round(statistics.median(ratios), 2),
                "change": round(float((drawn - whole).abs().mean()), 4) if setting.sampler not in NOISY else None,
                **{name: round(share, 3) for name, share in shares.items()},
                "FD": round(frechet(extractor(drawn).double(), features), 2),
            }
        )
        print("  ".join(f"{name} {value}" for name, value in rows[-1].items()))
    limits = {name: {key: round(judged[0][name][key], 3) for key in ("R@1", "R@10")} for name in ("chance", "ceiling")}
    print(limits)
    if options.save:
        about = {
            "date": datetime.date.today().isoformat(),
            "machine": machine(),
            "threads": 1,
            "torch": torch.__version__,
            "captions": len(texts),
            "pictures": len(asked),
            "cond_scale": options.cond_scale,
            **limits,
        }
        RESULT.write_text(json.dumps({**about, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
