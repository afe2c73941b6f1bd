"""The demo of pictures: how well captions are found by what was drawn for them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from ._demo import BATCH, Demo, captions_of, gathered, spread

if TYPE_CHECKING:
    from torch import Tensor

#: real pictures that the judge learns from, at most: it takes about 15 ms for each
JUDGE_LEARNS = 1200
#: the part of the embedded data that is never trained on: a thing in an art style in which it has not been seen
HELD_OUT = "pair"


def percent(figures: dict[str, float]) -> str:
    """R@1, R@5 and R@10 as columns."""
    return "".join(f"{100 * figures[name]:7.1f} %" for name in ("R@1", "R@5", "R@10"))


class PictureDemo(Demo):
    """The demo of a model that makes pictures."""

    entry = "caption_retrieval"
    figures = "caption retrieval"

    def held_out_split(self) -> str | None:
        """The part of the data that is never trained on, if they have a known one."""
        return HELD_OUT if self.config.dataset_name == "emoji64" else None

    def judge(self) -> dict[str, Any]:
        """Caption retrieval of generated pictures, by the captions that were trained on and by those held out.

        Twice: of the pictures as they are, and shrunk to the first stage's size, where the judge sees shapes and
        colours but not the texture about which it is strict. Real pictures are shrunk alike.
        """
        from ..evaluation.features import feature_extractor
        from ..evaluation.retrieval import caption_retrieval, train_probe
        from ..images import resize

        real, captions = gathered(self.data, spread(len(self.data), JUDGE_LEARNS))
        asked = {}
        for name, source in (("trained", self.data), ("held_out", self.held_out)):
            if source is not None and len(source):
                pictures, texts = gathered(source, spread(len(source), self.options.judge))
                made = self._drawn(texts)
                asked[name] = (
                    made,
                    texts,
                    pictures,
                    [*texts, *(captions if name == "trained" else captions_of(source))],
                )
        report: dict[str, Any] = {}
        extractor, encoder = feature_extractor(), self.imagen.text_encoder
        for height, width in dict.fromkeys((self.imagen.stages[-1].size, self.imagen.stages[0].size)):
            seen = partial(resize, size=(height, width))
            probe = train_probe(seen(real), captions, extractor=extractor, encoder=encoder, seed=self.options.seed)
            report[f"{width}x{height}"] = {
                name: caption_retrieval(probe, seen(made), texts, candidates=candidates, real=seen(pictures))
                for name, (made, texts, pictures, candidates) in asked.items()
            }
        return report

    def tell(self, report: dict[str, Any]) -> None:
        """The figures of `judge` as a table."""
        titles = {"trained": "captions of the training data", "held_out": "captions held out of training"}
        for size, kinds in report.items():
            for name, figures in kinds.items():
                count = f"{figures['pictures']} pictures, {figures['candidates']} captions to choose from"
                self.say(f"\n{titles[name]}, judged at {size} ({count})")
                self.say(f"  {'':20}{'R@1':>9}{'R@5':>9}{'R@10':>9}")
                for row, label in (("generated", "generated"), ("chance", "chance"), ("ceiling", "real pictures")):
                    self.say(f"  {label:20}{percent(figures[row])}")

    def _drawn(self, texts: list[str]) -> Tensor:
        sample = self.training.trainer.sample
        return self.draw(sample, texts, max_batch_size=BATCH, return_pil_images=False)[-1].cpu()
