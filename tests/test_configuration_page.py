"""docs/configuration.md is what the code says, and says everything that a configuration takes."""

from __future__ import annotations

import importlib.util
import inspect
import re
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "configuration_page.py"
SPEC = importlib.util.spec_from_file_location("configuration_page", SCRIPT)
page = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(page)


def test_the_page_is_that_of_the_code():
    assert page.PAGE.read_text(encoding="utf-8") == page.page(), f"run python {SCRIPT.name}"


@pytest.mark.parametrize(("title", "documented", "left_out"), page.SECTIONS, ids=[item[0] for item in page.SECTIONS])
def test_every_argument_is_described(title, documented, left_out):
    described = {name for names, text in page.arguments(documented) for name in names if text}
    accepted = set(inspect.signature(documented).parameters)
    if documented is page.ElucidatedImagen:  # what it shares with Imagen is described there
        accepted -= set(inspect.signature(page.Imagen).parameters) - described
    assert accepted - set(left_out) - {"args", "kwargs"} <= described
    rows = re.search(rf"## {re.escape(title)}\n(.*?)(\n## |\Z)", page.page(), re.DOTALL)[1]
    assert all(f"`{name}`" in rows for name in described - set(left_out))
