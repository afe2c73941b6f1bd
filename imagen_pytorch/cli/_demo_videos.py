"""The demo of videos: how many of them move, and show the digit, as their captions say."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ._demo import BATCH, Demo, evenly_spaced, stack_items
from ._files import overwrite
from ._judge import clip_figures, clip_table

#: the part of the embedded data that is never trained on: other clips, in other people's handwriting
HELD_OUT = "test"


class VideoDemo(Demo):
    """The demo of a model that makes videos."""

    entry = "motion"
    figures = "how many move and look as they should,"

    def held_out_split(self) -> str | None:
        """The held-out part of the data, for data sets that define one."""
        return HELD_OUT if self.config.dataset_name == "moving-digits" else None

    def write_sheet(self, items: Any, stage: int, name: str, title: str) -> Any:
        """One moving sheet of what a stage (counted from 0) made; the one to look at is also written as a film."""
        sheet = super().write_sheet(items, stage, name, title)
        if self.film is not None and name == self.film.stem:
            overwrite(self.outputs.encode(sheet, self.film.suffix, stage), self.film)
            self.say(f"  {self.film}")
        return sheet

    @property
    def film(self) -> Path | None:
        """The sheet to look at as MP4, where PyAV is installed."""
        return self.folder / f"stage{len(self.imagen.unets)}-after.mp4" if find_spec("av") else None

    def files(self) -> dict[Path, str]:
        """The files of the results, with a description of each."""
        first, *rest = super().files().items()
        film = [] if self.film is None else [(self.film, "the same as a film")]
        return dict([first, *film, *rest])

    def judge(self) -> dict[str, Any]:
        """Motion and digits of guided samples for captions that are not trained on, beside real clips."""
        source = self.data if self.held_out is None else self.held_out
        real, captions = stack_items(source, evenly_spaced(len(source), self.options.judge))  # type: ignore[arg-type]
        made = self.draw(self.training.trainer.sample, captions, max_batch_size=BATCH)[-1].cpu()
        return clip_figures(made, real, captions, self.options.seed)

    def entries(self, report: dict[str, Any]) -> dict[str, Any]:
        """Return the scores of `judge` by their names in ``metrics.json``."""
        return {self.entry: {}, **report}

    def tell(self, report: dict[str, Any]) -> None:
        """Print the scores of `judge` as a table."""
        lines = clip_table(report)
        if lines:
            self.say("\n" + "\n".join(lines))
