"""docs/extending.md: its code runs, and parts of a user's own are reached from everywhere and missed by name."""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from imagen_pytorch import Imagen, ImagenTrainer, Network, extensions, import_file
from imagen_pytorch.checkpoint import load_imagen_from_checkpoint
from imagen_pytorch.cli import main
from imagen_pytorch.configs import TrainingConfig
from imagen_pytorch.construction import records_construction
from imagen_pytorch.diffusion.samplers import SAMPLERS
from imagen_pytorch.io.errors import CheckpointError
from imagen_pytorch.nn.persistence import UNETS
from imagen_pytorch.signatures import parse

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")


def block(language):
    return re.search(rf"```{language}\n(.*?)```", PAGE, flags=re.S)[1]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "my_parts.py"
    path.write_text(block("python"))
    return path


@pytest.fixture
def parts(file, monkeypatch):
    """The file of the page, and the families without it before and afterwards."""
    for family in (SAMPLERS, UNETS):
        monkeypatch.setattr(family, "_members", dict(family._members))
        monkeypatch.setattr(family, "_canonical", list(family._canonical))
    for name in [name for name in sys.modules if name.startswith("imagen_pytorch_imported_")]:
        monkeypatch.delitem(sys.modules, name)
    return file


def configured():
    return parse(TrainingConfig, {"dataset_name": "emoji64", **json.loads(block("json"))}).imagen.create()


def test_a_transformer_of_ones_own_trains_samples_and_is_opened_again(parts, tmp_path):
    import_file(parts)
    assert import_file(str(parts)) is import_file(parts), "a file is imported once"
    model = configured()
    assert type(model.unets[0]).__name__ == "PatchTransformer" and model.unets[0].cond_on_text
    assert model.stages[0].process.sampler == SAMPLERS.make("damped(fraction=0.3)")
    trainer = ImagenTrainer(model)
    images, texts = torch.rand(4, 3, 8, 8), ["a cat", "a dog", "two cats", ""]
    for _ in range(2):
        assert 0 < trainer(images, texts=texts, unet_number=1) < 10
        trainer.update(unet_number=1)
    trainer.save(tmp_path / "model.pt")
    again = load_imagen_from_checkpoint(tmp_path / "model.pt")
    drawn = again.sample(texts=["a cat", "a dog"], cond_scale=2.0, seed=[1, 2], use_tqdm=False)
    assert drawn.shape == (2, 3, 8, 8) and drawn.isfinite().all() and again.unets[0].to_tokens.out_channels == 32


def test_captions_and_both_images_reach_the_transformer(parts):
    import_file(parts)
    kind = UNETS["PatchTransformer"]
    torch.manual_seed(0)
    networks = [kind(width=16, depth=1), kind(width=16, depth=1, self_cond=True)]
    model = Imagen(networks, image_sizes=(4, 8), text_embed_dim=6, timesteps=2, cond_drop_prob=0.5)
    assert [net.lowres_cond for net in model.unets] == [False, True] and model.unets[1].self_cond
    embeds = torch.randn(2, 3, 6)
    stages = model.sample(text_embeds=embeds, seed=0, return_all_unet_outputs=True, use_tqdm=False)
    other = model.sample(text_embeds=-embeds, seed=0, return_all_unet_outputs=True, use_tqdm=False)
    assert [item.shape[-1] for item in stages] == [4, 8] and not torch.equal(stages[0], other[0])
    for number in (1, 2):
        loss = model(torch.rand(2, 3, 8, 8), text_embeds=embeds, unet_number=number)
        loss.backward()
        assert all(item.grad is not None for item in model.unets[number - 1].parameters())
    with pytest.raises(ValueError, match="PatchTransformer has no inner maps to reuse: leave out cache_interval"):
        model.sample(text_embeds=embeds, cache_interval=2, use_tqdm=False)


def test_a_checkpoint_says_which_part_is_missing(parts, tmp_path, monkeypatch):
    import_file(parts)
    ImagenTrainer(configured()).save(tmp_path / "model.pt")
    for family, name, what in ((UNETS, "PatchTransformer", "network"), (SAMPLERS, "damped", "sampler")):
        with monkeypatch.context() as without:
            without.setattr(family, "_members", {key: item for key, item in family._members.items() if key != name})
            without.setattr(family, "_canonical", [key for key in family._canonical if key != name])
            with pytest.raises(CheckpointError, match=f'needs the {what} "{name}", which is not.*--import my_parts.py'):
                load_imagen_from_checkpoint(tmp_path / "model.pt")


def test_the_command_line_imports_a_file(parts, tmp_path):
    config = tmp_path / "mine.json"
    config.write_text(block("json"))
    runner = CliRunner()
    found = runner.invoke(main, ["info", str(config)])
    assert found.exit_code == 2 and 'no sampler "damped"' in found.output
    found = runner.invoke(main, ["info", "--import", str(parts), str(config)])
    assert found.exit_code == 0, found.output
    found = runner.invoke(main, ["info", "--import", str(tmp_path / "none.py"), str(config)])
    assert found.exit_code == 2 and "no file" in found.output
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0")
    found = runner.invoke(main, ["--import", str(broken), "info", str(config)])
    assert found.exit_code == 2 and "broken.py cannot be imported: ZeroDivisionError" in found.output


def test_every_command_takes_files_to_import():
    context = click.Context(main)
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert sum("--import" in item.opts for item in command.params) == 1, name


def test_an_entry_point_is_imported_when_a_name_is_unknown(parts, monkeypatch):
    monkeypatch.syspath_prepend(str(parts.parent))
    monkeypatch.delitem(sys.modules, "my_parts", raising=False)
    points = [
        EntryPoint("broken", "no_such_module", extensions.GROUP),
        EntryPoint("mine", "my_parts", extensions.GROUP),
    ]
    monkeypatch.setattr(extensions, "entry_points", lambda group: points if group == extensions.GROUP else [])
    extensions.import_entry_points.cache_clear()
    with pytest.warns(UserWarning, match='the entry point "broken" .no_such_module. cannot be imported'):
        assert SAMPLERS.make("damped(fraction=0.1)").fraction == 0.1
    assert "PatchTransformer" in UNETS
    with pytest.raises(ValueError, match='no sampler "dampd"; .*did you mean "damped"'):
        SAMPLERS.make("dampd")
    sys.modules.pop("my_parts")


# -- the contract -----------------------------------------------------------------------------------------------------


class Whole(Network):
    @records_construction
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.weight = nn.Parameter(torch.zeros(()))

    def predict(self, x, time, conditions, self_cond):
        return self.weight * x


def test_a_network_without_a_part_of_the_contract_is_told_what_it_lacks():
    options = {"image_sizes": 4, "condition_on_text": False}
    assert Imagen(Whole(), **options).sample(batch_size=1, use_tqdm=False, steps=1, sampler="ddim").shape == (
        1,
        3,
        4,
        4,
    )
    with pytest.raises(TypeError, match=r"got Linear; .*it lacks|got Linear; .*lacks the attribute channels \(int\)"):
        Imagen(nn.Linear(2, 2), **options)

    class Odd(Whole):
        def forward(self, x, time):
            return x

        def condition(self, batch):
            return None

    with pytest.raises(
        TypeError, match=r"lacks condition\(batch=, size=\), forward\(x, time, conditioning, self_cond=\)"
    ):
        Imagen(Odd(), **options)
    nameless = Whole()
    del nameless.self_cond
    nameless.lowres_cond = None
    with pytest.raises(TypeError, match=r"lacks the attribute lowres_cond \(bool\), the attribute self_cond \(bool\)$"):
        Imagen(nameless, **options)


def test_names_of_the_page_exist():
    """Quoted names of classes and attributes are those of the base class and of the families."""
    for name in re.findall(r"^\| `(\w+)", PAGE[PAGE.index("## What a network has") :], flags=re.M):
        assert hasattr(Whole(), name), name
