"""A network as ONNX predicts what it predicts in torch, for a batch of another size."""

from __future__ import annotations

import pytest
import torch
from click.testing import CliRunner
from torch import nn
from toys import small_imagen

from imagen_pytorch import Imagen
from imagen_pytorch.checkpoint import CheckpointNotWritten
from imagen_pytorch.cli import main
from imagen_pytorch.export import ONNX_TOLERANCE, export_onnx

TINY = {"dim_mults": (1,), "layer_cross_attns": True}


def model(**options) -> Imagen:
    imagen = small_imagen(**{"unet": TINY, **options})
    for parameter in imagen.parameters():
        nn.init.normal_(parameter, std=0.2)
    return imagen


@pytest.fixture(autouse=True)
def packages(monkeypatch):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason='needs the extra "onnx"')
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)


def test_the_command_writes_the_network_of_one_unet(tmp_path):
    import onnx

    model().save(tmp_path / "a.pt")
    done = CliRunner().invoke(main, ["export", str(tmp_path / "a.pt"), str(tmp_path / "a.onnx")])
    assert (done.exit_code, done.stdout) == (0, f"{tmp_path}/a.onnx\n"), done.stderr
    assert done.stderr.count("\n") == 1 and "onnxruntime and torch agree within" in done.stderr
    graph = onnx.load(tmp_path / "a.onnx").graph
    inputs = {item.name: [axis.dim_param or axis.dim_value for axis in item.type.tensor_type.shape.dim]
              for item in graph.input}  # fmt: skip
    assert list(inputs) == ["x", "time", "text_embeds", "text_mask"] and [item.name for item in graph.output] == [
        "prediction"
    ]
    assert len({shape[0] for shape in inputs.values()}) == 1 and isinstance(inputs["x"][0], str)
    assert inputs["x"][1:] == [3, 8, 8]
    with pytest.raises(CheckpointNotWritten, match="exists already"):
        export_onnx(tmp_path / "a.pt", tmp_path / "a.onnx")


@pytest.mark.slow
def test_an_upsampler_and_a_model_without_text(tmp_path):
    model(sizes=(8, 16), condition_on_text=False).save(tmp_path / "a.pt")
    difference = export_onnx(tmp_path / "a.pt", tmp_path / "a.onnx", unet_number=2)
    assert difference is not None and difference < ONNX_TOLERANCE


def test_a_network_that_predicts_something_else_is_not_written(tmp_path, monkeypatch):
    model().save(tmp_path / "a.pt")
    monkeypatch.setattr("imagen_pytorch.export._onnx_program", lambda *_: b"")
    monkeypatch.setattr("imagen_pytorch.export._onnx_difference", lambda *_: 0.1)
    with pytest.raises(ValueError, match=r"U-Net 1 predicts something else: off by 0\.1"):
        export_onnx(tmp_path / "a.pt", tmp_path / "a.onnx")
    assert not (tmp_path / "a.onnx").exists()


def test_a_network_that_torch_cannot_export(tmp_path, monkeypatch):
    model().save(tmp_path / "a.pt")

    def fails(*_, **__):
        raise RuntimeError("no such operator")

    monkeypatch.setattr(torch.onnx, "export", fails)
    with pytest.raises(ValueError, match="torch cannot export Unet as ONNX: no such operator"):
        export_onnx(tmp_path / "a.pt", tmp_path / "a.onnx")


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(ImportError, match="ONNX needs packages that are missing: pip install onnxscript"):
        export_onnx(tmp_path / "a.pt", tmp_path / "a.onnx")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["a.onnx", "-o", "b.onnx"], "named twice"),
        (["a.pt", "--unet", "1"], "--unet is for .onnx files"),
        (["a.onnx", "--full"], "always in single precision"),
    ],
)
def test_options_that_contradict_each_other(options, sentence):
    done = CliRunner().invoke(main, ["export", "emoji", *options])
    assert done.exit_code == 2 and sentence in done.stderr
