"""Memory is asked for before it is taken: what cannot fit is refused, with the nearest setting that fits."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jaxtyping
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from imagen_pytorch.cli import main
from imagen_pytorch.configs import TrainingConfig
from imagen_pytorch.construction import build_on_meta
from imagen_pytorch.profiling import advice
from imagen_pytorch.profiling.advice import Machine, this_machine
from imagen_pytorch.profiling.estimates import Plan, most_activations, training_cost, training_states
from imagen_pytorch.signatures import parse

UNET = {"dim": 8, "dim_mults": [1, 2], "num_resnet_blocks": 1, "attn_heads": 2, "attn_dim_head": 8, "max_text_len": 8}
UNET |= {"layer_attns": False, "layer_cross_attns": False, "attn_pool_text": False, "init_cross_embed": False}
IMAGEN = {"image_sizes": [16], "unets": [UNET], "timesteps": 2, "text_encoder_name": "builtin:words:16"}
#: networks whose activations are of every kind: attention over all pixels, long captions, frames, several stages
NETWORKS = {
    "plain": UNET,
    "attention": {**UNET, "layer_attns": True, "layer_cross_attns": True, "max_text_len": 256, "attn_pool_text": True},
    "linear attention": {**UNET, "use_linear_attn": True, "use_linear_cross_attn": True},
    "memory efficient": {**UNET, "memory_efficient": True, "init_cross_embed": True},
    "checkpointing": {**UNET, "gradient_checkpointing": True},
}


@pytest.fixture(autouse=True, scope="module")
def unchecked_annotations(checked_annotations):
    """Meters see every single operator: checking them would multiply the time."""
    jaxtyping.config.update("jaxtyping_disable", True)


def settings(batch: int = 8, **changes: object) -> dict:
    return {"imagen": IMAGEN, "dataset_name": "pictures", "dataset": {"batch_size": batch}, **changes}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Eight captioned pictures and a configuration."""
    monkeypatch.chdir(tmp_path)
    Path("pictures").mkdir()
    for number in range(8):
        Image.new("RGB", (16, 16), (30 * number, 99, 9)).save(f"pictures/{number}.png")
        Path(f"pictures/{number}.txt").write_text(f"number {number}")
    Path("imagen_config.json").write_text(json.dumps(settings()))
    return tmp_path


def room(monkeypatch, memory: int, taken: int = 0) -> None:
    """Make this a machine with so much memory."""
    monkeypatch.setattr(advice, "this_machine", lambda *_, **__: Machine("cpu", "this machine", memory, taken))


def train(*arguments: object):
    return CliRunner().invoke(main, ["train", *map(str, arguments)])


def states_and_more() -> tuple[int, int]:
    """Bytes before the first picture, and the activations of one."""
    config = parse(TrainingConfig, settings())
    cascade = build_on_meta(config.imagen._make)
    plan = Plan(batch_size=1, enough=0)
    return training_states(cascade, 1, plan).total, training_cost(cascade, 1, plan).peak


def test_a_batch_that_does_not_fit_is_refused_and_the_suggestion_fits(folder, monkeypatch):
    fixed, each = states_and_more()
    room(monkeypatch, fixed + 5 * each)
    refused = train("--steps", 1)
    assert refused.exit_code == 5 and refused.stdout == "" and "Traceback" not in refused.stderr
    line = refused.stderr.splitlines()[-1]
    assert line.startswith("imagen: training U-Net 1 needs") and line.endswith("--force tries all the same")
    assert not Path("imagen.pt").exists()
    suggested = re.search(r"--max-batch-size (\d+)", line)
    assert suggested and train("--steps", 1, *suggested[0].split()).exit_code == 0
    assert Path("imagen.pt").is_file()


def test_weights_that_do_not_fit_are_refused_before_the_data_are_opened(folder, monkeypatch):
    fixed, _ = states_and_more()
    room(monkeypatch, fixed - 1)
    refused = train("--steps", 1, "--data", "no such folder", "-o", "new")
    assert refused.exit_code == 5 and "--config emoji" in refused.stderr and not Path("new").exists()


def test_what_others_use_is_not_there(folder, monkeypatch):
    fixed, each = states_and_more()
    room(monkeypatch, 10**9, 10**9 - fixed - each // 2)
    refused = train("--steps", 1)
    assert refused.exit_code == 5 and re.search(r"this machine has [0-9.]+ MB free of 1\.00 GB", refused.stderr)


def test_force_trains_all_the_same(folder, monkeypatch):
    room(monkeypatch, 1)
    assert train("--steps", 1).exit_code == 5
    assert train("--steps", 1, "--force").exit_code == 0


def test_the_demo_asks_too_and_names_no_option_that_it_has_not(folder, monkeypatch):
    room(monkeypatch, 1)
    Path("demo.json").write_text(json.dumps(settings(steps=1, sample_texts=["number 1"])))
    done = CliRunner().invoke(main, ["demo", "--config", "demo.json", "-o", "new"])
    assert done.exit_code == 5 and "needs" in done.stderr and "--force" not in done.stderr


def test_profiling_a_training_asks_too(folder, monkeypatch):
    room(monkeypatch, 1)
    for arguments, code in (([], 5), (["--force"], 0), (["--sample"], 0)):
        done = CliRunner().invoke(main, ["profile", "--steps", "1", *arguments])
        assert done.exit_code == code, done.stderr
        assert code == 0 or ("needs" in done.stderr and not list(Path().glob("trace*")))


def test_a_batch_is_no_larger_than_the_data(folder, monkeypatch):
    fixed, each = states_and_more()
    room(monkeypatch, fixed + 9 * each)
    assert train("--steps", 1, "--batch-size", 4096).exit_code == 0


def test_the_papers_cascade_is_refused_at_once(folder, monkeypatch):
    room(monkeypatch, 25_300_000_000)
    refused = train("--config", "paper", "--data", "pictures", "--steps", 1)
    assert refused.exit_code == 5 and "44.4 GB" in refused.stderr and "--config emoji" in refused.stderr


def test_processes_share_the_memory_of_a_machine_and_the_batch(folder, monkeypatch):
    from imagen_pytorch.cli._memory import MemoryCheck

    fixed, each = states_and_more()
    config, cpu = parse(TrainingConfig, settings()), torch.device("cpu")
    room(monkeypatch, 2 * (fixed + 5 * each))
    with pytest.raises(Exception, match="--max-batch-size 4"):
        room(monkeypatch, fixed + 5 * each)
        MemoryCheck(config, [1], cpu).before_training(8)
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    room(monkeypatch, 2 * (fixed + 5 * each))
    MemoryCheck(config, [1], cpu).before_training(8)  # four pictures each
    room(monkeypatch, fixed + 5 * each)
    with pytest.raises(Exception, match="needs"):
        MemoryCheck(config, [1], cpu).before_training(8)
    shared = config.model_copy(update={"trainer": config.trainer.model_copy(update={"strategy": "fsdp2"})})
    shared.trainer.model_fields_set.add("strategy")
    room(monkeypatch, fixed + 9 * each)
    MemoryCheck(shared, [1], cpu).before_training(8)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_quick_bound_is_above_the_estimate(name):
    sizes = {"image_sizes": [4, 16], "random_crop_sizes": [None, 8], "unets": [NETWORKS[name]] * 2}
    cascade = build_on_meta(parse(TrainingConfig, settings(imagen=IMAGEN | sizes)).imagen._make)
    plan = Plan(batch_size=3, enough=0)
    assert training_cost(cascade, 2, plan).peak < most_activations(cascade, 2, plan)


def test_the_quick_bound_counts_frames():
    video = {"video": True, "video_frames": 4, "unets": [UNET]}
    cascade = build_on_meta(parse(TrainingConfig, settings(imagen=IMAGEN | video)).imagen._make)
    plan = Plan(batch_size=2, frames=8, enough=0)
    assert training_cost(cascade, 1, plan).peak < most_activations(cascade, 1, plan)


# -- how much there is ------------------------------------------------------------------------------------------------


def test_containers_limit_the_memory(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(advice, "_CGROUPS", (limit,))
    unlimited = this_machine(torch.device("cpu")).memory
    for text, expected in {"max\n": unlimited, "123456789\n": 123_456_789, f"{1 << 60}\n": unlimited}.items():
        limit.write_text(text)
        assert this_machine(torch.device("cpu")).memory == expected


def test_ulimit_limits_the_memory(monkeypatch):
    resource = pytest.importorskip("resource")
    before = this_machine(torch.device("cpu")).memory
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    try:
        resource.setrlimit(resource.RLIMIT_AS, (mapped + (1 << 30), hard))
        assert this_machine(torch.device("cpu")).memory <= min(1 << 30, before)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_free_memory_is_what_the_system_says():
    machine = this_machine(torch.device("cpu"), free=True)
    assert 0 < machine.taken < machine.memory and machine.room == machine.memory - machine.taken
    assert this_machine(torch.device("cpu")).taken == 0
