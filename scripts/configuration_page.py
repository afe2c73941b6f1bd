"""Write docs/configuration.md: every entry of a configuration, from the signatures and docstrings of the code.

python scripts/configuration_page.py
"""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic_core import PydanticUndefined

from imagen_pytorch import ElucidatedImagen, Imagen, ImagenTrainer, Unet, Unet3D
from imagen_pytorch.configs import TrainingConfig
from imagen_pytorch.data import SOURCES, Dataset, VideoDataset
from imagen_pytorch.data.huggingface import hub_dataset
from imagen_pytorch.signatures import Configuration

PAGE = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"

TOP = """# The configuration

`imagen train --config FILE` reads a JSON, TOML or YAML file with the entries below; `imagen config` writes one to start
from, with `--data FOLDER --size N` one for your images. `imagen config --schema` prints the schema by which editors
complete and check a file that names it under `"$schema"`. What is left out has the default of this page. None, True and
False of the descriptions are null, true and false in JSON.
`imagen train --set imagen.cond_drop_prob=0.2` changes one entry, and an entry
that does not exist or does not fit is refused with its place. "Per-unet" entries are one value or one per U-Net,
"per-level" entries one value or one per entry of `dim_mults`.

This page is written by `scripts/configuration_page.py` from the code.
"""

#: heading, the constructor, and its arguments that a configuration does not have
SECTIONS: tuple[tuple[str, Callable[..., Any], tuple[str, ...]], ...] = (
    ("`imagen`: the model", Imagen, ("unets", "text_encoder")),
    ('`imagen` where `type` is "elucidated": in addition, or in place of the same name', ElucidatedImagen, ()),
    ("`imagen.unets`: the networks of images", Unet, ("image_embed_dim", "num_image_tokens", "out_dim")),
    ("`imagen.unets` of videos (`imagen.video`: true): in addition", Unet3D, ("kwargs",)),
    (
        "`trainer`",
        ImagenTrainer,
        ("imagen", "imagen_checkpoint_path", "use_lion", "checkpoint_fs", "fs_kwargs", "options", "verbose"),
    ),
    *((f'`dataset` of "{name}"', SOURCES[name], ()) for name in SOURCES.names()),
    ("`dataset` of a folder of images", Dataset, ("folder", "fs")),
    ("`dataset` of a folder of clips, which `num_frames` makes it", VideoDataset, ("folder", "fs")),
    ("`dataset` of the hub", hub_dataset, ("name",)),
)


def arguments(documented: Callable[..., Any]) -> Iterator[tuple[list[str], str]]:
    """Yield the names and the description of each entry under "Args:" of a docstring."""
    text = inspect.cleandoc(documented.__doc__ or "")
    block = re.search(r"^Args:\n((?:    .*\n|\n)+)", text + "\n", re.MULTILINE)
    lines = textwrap.dedent(block[1]) if block else ""
    for entry in re.split(r"\n(?=\S)", lines.strip()):
        names, _, description = entry.partition(":")
        yield [name.strip() for name in names.split(",")], " ".join(description.split())


def cell(text: str) -> str:
    """Make a text fit into a table: code in single backticks, no bars."""
    return text.replace("``", "`").replace("|", "or")


def default_of(documented: Callable[..., Any], name: str) -> str:
    """Return the default of an argument as it is written in JSON, or "" where it has none."""
    parameter = inspect.signature(documented).parameters.get(name)
    if parameter is None or parameter.default is parameter.empty:
        return ""
    value = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
    return f"`{json.dumps(value)}`"


def rows(documented: Callable[..., Any], left_out: tuple[str, ...]) -> Iterator[str]:
    """Yield the rows of a section's table."""
    for names, description in arguments(documented):
        shown = [name for name in names if name not in left_out]
        if shown:
            defaults = [default_of(documented, name) for name in shown]
            default = defaults[0] if len(set(defaults)) == 1 else ", ".join(defaults)
            yield f"| {', '.join(f'`{name}`' for name in shown)} | {default} | {cell(description)} |"


def page() -> str:
    """Return the text of the page."""
    lines = [TOP, "| entry | default | meaning |", "| --- | --- | --- |"]
    for name, field in TrainingConfig.model_fields.items():
        value = field.get_default(call_default_factory=True)
        shown = "" if value is PydanticUndefined or isinstance(value, Configuration) else f"`{json.dumps(value)}`"
        lines.append(f"| `{name}` | {shown} | {cell(field.description or '')} |")
    for title, documented, left_out in SECTIONS:
        table = list(rows(documented, left_out))
        lacking = sorted(set(inspect.signature(Imagen).parameters) - set(inspect.signature(documented).parameters))
        if documented is ElucidatedImagen:
            table.append(f"| {', '.join(f'`{name}`' for name in lacking)} | | not of this type |")
        if table:
            lines += ["", f"## {title}", "", "| entry | default | meaning |", "| --- | --- | --- |", *table]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
