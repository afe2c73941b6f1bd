"""Every Python block of the README and of the page for users of another package runs, in order and in one folder."""

from __future__ import annotations

import re
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"


def test_every_python_block_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 4
    names: dict = {}
    for number, block in enumerate(blocks, start=1):
        exec(compile(block, f"README.md, Python block {number}", "exec"), names)
    assert names["samples"].shape == (1, 3, 32, 32) and float(names["samples"].min()) >= 0
    assert float(names["samples"].max()) <= 1 and Path("heart.png").is_file()
    assert names["video"].shape == (2, 3, 12, 16, 16) and names["longer"].shape == (2, 3, 4, 16, 16)
    assert names["film"].shape == (2, 3, 16, 16, 16)
    assert torch.equal(names["between"][:, :, ::3], names["video"][:, :, ::3])
    outside = names["mask"][:, None].expand_as(names["known"])
    assert (names["filled"][outside] == names["known"][outside]).float().mean() > 0.99


def test_a_script_for_the_other_package_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "from-imagen-pytorch.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict = {}
    exec(compile(block, "from-imagen-pytorch.md", "exec"), names)
    assert [image.size for image in names["images"]] == [(16, 16)]
    assert names["trainer"].num_steps_taken(1) == 2 and isinstance(names["loss"], float)


def test_every_page_is_linked_and_every_link_leads_somewhere():
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    linked = set(re.findall(r"\]\(docs/([\w.-]+\.md)\)", README.read_text(encoding="utf-8")))
    assert linked == pages
    for path in [README, *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"
