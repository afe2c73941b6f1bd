"""Every Python block of the README and of the pages for users runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"


def run_blocks(path: Path, folder: Path, monkeypatch) -> dict:
    """Run the Python blocks of a page, in order and in one folder, and return their names."""
    monkeypatch.chdir(folder)
    names: dict = {}
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL), 1):
        exec(compile(block, f"{path.name}, Python block {number}", "exec"), names)
    assert names, f"{path.name} has no Python block"
    return names


def test_the_block_of_the_readme_runs(tmp_path, monkeypatch):
    samples = run_blocks(README, tmp_path, monkeypatch)["samples"]
    assert samples.shape == (1, 3, 32, 32) and float(samples.min()) >= 0 and float(samples.max()) <= 1


def test_the_blocks_of_the_page_about_python_run(tmp_path, monkeypatch):
    names = run_blocks(ROOT / "docs" / "python.md", tmp_path, monkeypatch)
    assert [image.size for image in names["images_of_the_demo"]] == [(64, 64)] * 2
    again = names["model"].sample(texts=["a blue fish"], seed=8, return_pil_images=True)[0]
    assert again.tobytes() == names["images_of_the_demo"][1].tobytes()
    samples, known = names["samples"], names["known"]
    assert samples.shape == (1, 3, 32, 32) and float(samples.min()) >= 0 and float(samples.max()) <= 1
    assert Path("heart.png").is_file() and Path("a_red_heart.png").is_file()
    outside = names["mask"][:, None].expand_as(known)
    assert (names["filled"][outside] == known[outside]).float().mean() > 0.99


def test_the_block_of_the_page_about_videos_runs(tmp_path, monkeypatch):
    names = run_blocks(ROOT / "docs" / "videos.md", tmp_path, monkeypatch)
    assert names["video"].shape == (2, 3, 12, 16, 16) and names["longer"].shape == (2, 3, 4, 16, 16)
    assert names["film"].shape == (2, 3, 16, 16, 16)
    assert torch.equal(names["between"][:, :, ::3], names["video"][:, :, ::3])


def test_the_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = json.loads((ROOT / "examples" / "quickstart.ipynb").read_text(encoding="utf-8"))["cells"]
    names: dict = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"quickstart.ipynb, {cell['id']}", "exec"), names)
    kept = names["keep"][:, None].expand_as(names["known"])
    assert (names["filled"][kept] - names["known"][kept]).abs().max() < 1e-5
    assert not torch.equal(names["varied"][0], names["varied"][2]) and names["losses"][-1] < names["losses"][0]


def test_a_script_for_the_other_package_runs(tmp_path, monkeypatch):
    names = run_blocks(ROOT / "docs" / "from-imagen-pytorch.md", tmp_path, monkeypatch)
    assert [image.size for image in names["images"]] == [(16, 16)]
    assert names["trainer"].num_steps_taken(1) == 2 and isinstance(names["loss"], float)


def test_every_page_is_linked_and_every_link_leads_somewhere():
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    linked = set(re.findall(r"\]\(docs/([\w.-]+\.md)\)", README.read_text(encoding="utf-8")))
    assert linked == pages
    for path in [README, *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"
