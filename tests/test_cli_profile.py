"""``imagen profile``: a few real steps on random data, and where their time went."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from toys import small_imagen

from imagen_pytorch import ImagenTrainer
from imagen_pytorch.cli import _profile, main
from imagen_pytorch.profiling.running import attributed
from imagen_pytorch.profiling.spans import PREFIX, Spans, name_network, name_training, parts_of
from imagen_pytorch.profiling.steps import sampling_steps, training_step

UNET = {"dim_mults": (1, 2), "num_resnet_blocks": 0, "use_global_context_attn": False, "max_text_len": 4}
CONFIG = {
    "imagen": {
        "image_sizes": [4, 8],
        "unets": [{**UNET, "dim": 8, "attn_heads": 2, "layer_attns": False, "attn_pool_text": False}] * 2,
        "timesteps": 2,
        "text_encoder_name": "builtin:words:16",
    },
    "trainer": {"warmup_steps": 2},
    "dataset": {"batch_size": 3},
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """``imagen profile`` in a folder with a configuration."""
    monkeypatch.chdir(tmp_path)
    Path("imagen_config.json").write_text(json.dumps(CONFIG))
    return lambda *arguments: CliRunner().invoke(main, ["profile", *(str(item) for item in arguments)])


def rows(text: str, head: str) -> dict[str, list[str]]:
    """A table of the output: the numbers behind the first words of its lines."""
    block = next(block for block in text.split("\n\n") if block.lstrip().startswith(head))
    found = (re.match(r"(.+?)  +([\d,. %]+)$", line) for line in block.strip().splitlines()[1:])
    return {match[1]: match[2].split() for match in found if match}


def test_training_steps(run):
    done = run("--steps", 1, "--unet", 2, "--output", "out")
    assert done.exit_code == 0, done.stderr
    *_, path = done.stdout.splitlines()
    events = json.loads(Path(path).read_text())["traceEvents"]
    assert path == "out/trace.json" and sum(event.get("name") == f"{PREFIX}step" for event in events) >= 1
    parts = rows(done.stdout, "part")
    for name in ("data", "text conditioning", "stem", "down 1", "middle", "up 2", "head", "loss", "optimizer", "EMA"):
        assert name in parts, done.stdout
    assert [name for name in parts if name.startswith("down")] == ["down 1", "down 2"]
    assert len(parts["down 1"]) == 5 and float(parts["down 1"][1]) > 0  # the backward pass, too
    shares = [float(numbers[-2]) for name, numbers in parts.items() if name != "total"]
    assert sum(shares) == pytest.approx(100, abs=1.5)
    operators = rows(done.stdout, "operator")
    assert any("convolution_backward" in name for name in operators) and len(operators) <= 16
    assert "values that the host reads in a step" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_sampling_steps_of_a_checkpoint(run):
    ImagenTrainer(small_imagen((4, 8), unet=UNET)).save("imagen.pt")
    done = run("--model", "imagen.pt", "--sample", "--unet", 2, "--steps", 4, "-q")
    assert done.exit_code == 0 and done.stderr == "" and done.stdout.endswith("\ntrace.json\n")
    parts = rows(done.stdout, "part")
    assert {"text conditioning", "down 1", "head", "rest of the network"} <= parts.keys() and "EMA" not in parts
    assert len(parts["down 1"]) == 3 and "backward" not in done.stdout
    again = run("--model", ".", "--sample", "--steps", 1, "-q")
    assert again.stdout.endswith("\ntrace-1.json\n")  # nothing is replaced


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--unet", 3], "the model has 2 U-Nets"),
        (["--config", "nothing"], "no configuration nothing"),
        (["--config", "emoji", "--model", "imagen.pt"], "not both"),
        (["--model", "imagen.pt"], "no model at imagen.pt"),
        (["--output", "imagen_config.json"], "cannot write to the folder"),
    ],
)
def test_mistakes(run, arguments, words):
    done = run(*arguments)
    assert done.exit_code == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1


# -- names ------------------------------------------------------------------------------------------------------------


def test_names_are_there_for_the_block_only():
    trainer = ImagenTrainer(small_imagen(unet=UNET))
    unet, unet_trainer = trainer.imagen.unets[0], trainer.unet_trainers[0]
    owners = (trainer.imagen, unet, unet_trainer, unet_trainer.optimizer, unet_trainer.average)
    hooks = [(part._forward_hooks, part._forward_pre_hooks) for part in unet.modules()]
    before = [dict(vars(owner)) for owner in owners]
    with Spans() as spans:
        name_training(spans, trainer, 1)
        assert "condition" in vars(unet) and any(after for after, _ in hooks)
    assert [dict(vars(owner)) for owner in owners] == before
    assert not any(after or first for after, first in hooks)


def test_an_error_inside_leaves_no_name_open():
    unet = small_imagen(unet=UNET).unets[0]
    with Spans() as spans, pytest.raises(ValueError, match="text_embeds must be"):
        name_network(spans, unet)
        unet(torch.zeros(1, 3, 8, 8), torch.zeros(1), text_embeds=torch.zeros(1, 2, 99))
    assert spans._open == []


def test_every_weight_is_in_a_part_or_reads_captions():
    unet = small_imagen(unet={**UNET, "combine_upsample_fmaps": True, "memory_efficient": True}).unets[0]
    named = {id(item) for _, part in parts_of(unet) for item in part.parameters()}
    left = {name.split(".")[0] for name, item in unet.named_parameters() if id(item) not in named}
    assert all("text" in name or name in ("norm_cond", "attn_pool") for name in left), left


def test_steps_are_those_of_any_model():
    """Conditioning pictures, no captions, no guidance; and clips that are enlarged."""
    pictures = small_imagen(unet={**UNET, "cond_images_channels": 2}, condition_on_text=False)
    trainer = ImagenTrainer(pictures)
    training_step(trainer, 1, 2, max_batch_size=1)()
    sampling_steps(trainer.imagen, 1, 2, 1)()
    assert int(trainer.steps[0]) == 1


# -- whose time it is -------------------------------------------------------------------------------------------------


def event(name: str, parent=None, host: float = 0.0, sequence: int = -1, scope: int = 0, gpu: float = 0.0):
    """What torch's profiler tells of a call."""
    return SimpleNamespace(
        name=name,
        cpu_parent=parent,
        self_cpu_time_total=host,
        self_device_time_total=gpu,
        sequence_nr=sequence,
        scope=scope,
    )


def test_time_belongs_to_the_innermost_name_and_gradients_to_what_was_computed():
    step = event(f"{PREFIX}step", host=1)
    down = event(f"{PREFIX}down 1", step, host=2)
    copy = event("aten::copy_", step, host=4, sequence=7)  # before the convolution, and made no node
    conv = event("aten::conv", down, host=30, sequence=7, gpu=5)
    back = event(f"{PREFIX}backward", step, host=3)
    engine = event("autograd::engine::evaluate_function: ConvBackward", back, host=5, sequence=7)
    node = event("ConvBackward", engine, host=6, sequence=7, scope=1)
    kernel = event("aten::convolution_backward", node, host=70, gpu=9)
    again = event(f"{PREFIX}up 1", node, host=8)  # recomputed
    inner = event("aten::conv", again, host=90, sequence=11)
    value = event("aten::item", step, host=1)
    own = event("aten::item", event("aten::_fused_adam_", step), host=1)
    wait = event("cudaStreamSynchronize", value, host=2)
    found = attributed([step, copy, down, conv, back, engine, node, kernel, again, inner, value, own, wait])
    assert found.forward["down 1"].host == 32 and found.forward["down 1"].gpu == 5
    assert found.backward["down 1"].host == 76 and found.backward["down 1"].gpu == 9
    assert found.forward["up 1"].host == 98 and found.backward["backward"].host == 8
    assert found.reads == {"step": 1} and found.waits == {"cudaStreamSynchronize": 1}
    assert found.operators["aten::conv"].calls == 2 and f"{PREFIX}step" not in found.operators
    gpu = _profile.parts_table(found, gpu=True)
    assert "ms a step" in gpu[0] and any("waits for the GPU" in line for line in _profile.reads_lines(found, gpu=True))
