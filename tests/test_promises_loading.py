"""Every door that loads: what it refuses changes nothing, runs nothing, and is refused with a sentence."""

from __future__ import annotations

import copy
import json
import os
import shlex
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image
from test_resume import differing, everything
from toys import CAPTIONS, SMALL, WORDS, pictures, small_imagen

from imagen_pytorch import ImagenTrainer, load_imagen_from_checkpoint
from imagen_pytorch.checkpoint import CheckpointError, CheckpointMismatch, read_checkpoint, write_checkpoint
from imagen_pytorch.cli import main


def new(sizes=(8,), model=None, **options):
    torch.manual_seed(3)
    often = {"ema_update_after_step": 0, "ema_update_every": 1, "warmup_steps": 4}
    settings_ = {"lr": 1e-2, "verbose": False, "seed": 5, **often, **options}
    made = ImagenTrainer(small_imagen(sizes, **(model or {})), **settings_)
    pairs = list(zip(pictures(6, sizes[-1]), (CAPTIONS * 2)[:6], strict=True))
    made.add_train_dataset(pairs, batch_size=2, shuffle=True)
    return made


def train(made, count=1, number=1):
    return [made.train_step(number) for _ in range(count)]


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A checkpoint after two steps with a gradient that waits, in fp16, so that every kind of entry is in it."""
    path = tmp_path_factory.mktemp("good") / "a.pt"
    made = new(precision="fp16")
    train(made, 2)
    made(pictures(2), texts=CAPTIONS[:2])
    made.save(path)
    return path


def situation(made):
    """All that a load could touch."""
    data, waiting = made.train_dl_iter.state_dict(), [item.grad for item in made.imagen.parameters()]
    random = made.randomness.state_dict()["seeds"].tolist(), torch.get_rng_state().tolist()
    gradients = [None if item is None else item.clone() for item in waiting]
    return everything(made), data, random, gradients, made.scaler0.state_dict(), made.steps.tolist(), made.get_lr(1)


def unchanged(made, before):
    now = situation(made)
    assert not differing(before[0], now[0])
    assert before[1:3] == now[1:3] and before[4:] == now[4:]
    for one, other in zip(before[3], now[3], strict=True):
        assert (one is None) == (other is None) and (one is None or torch.equal(one, other))


# -- a refused load leaves everything as it was -----------------------------------------------------------------------


class _Evil:
    def __reduce__(self):
        return os.system, ("touch executed",)


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


DAMAGE = {
    "truncated": (truncated, "cut off, damaged or another kind of file"),
    "one bit": (flipped, "checksum|damaged"),
    "empty": (lambda path: path.write_bytes(b""), "cut off, damaged or another kind of file"),
    "a picture": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" * 9), "another kind of file"),
    "code": (lambda path: torch.save({"model": _Evil()}, path), "could run code; nothing was executed"),
}
SEEDS = torch.Generator().get_state()
#: an entry, what stands in its place, and how the message names it
WRONG = [
    (("model",), None, "model"),
    (("model",), [torch.zeros(1)], "model"),
    (("model", "unets.0.final_conv.bias"), 3, "model"),
    (("ema",), 5, "ema"),
    (("ema", "0.step"), None, "ema"),
    (("steps",), "x", "steps"),
    (("steps",), torch.zeros(1, 1), "steps"),
    (("steps",), torch.tensor([-1]), "steps"),
    (("steps",), torch.tensor([1, 2]), "steps of 2 U-Nets"),
    (("state",), 5, "state"),
    (("state", "randomness"), [1], "state.randomness"),
    (("state", "randomness", "seeds"), SEEDS[:-1], "state.randomness"),
    (("state", "randomness", "seeds"), None, "state.randomness"),
    (("state", "data"), {"seed": 1}, "state.data"),
    (("state", "data", "position"), -1, "state.data"),
    (("state", "data", "seed"), 0.5, "state.data"),
    (("state", "data", "orders"), [torch.zeros(3)], "state.data"),
    (("state", "skipped_steps"), ["x"], "state.skipped_steps"),
    (("state", "skipped_in_a_row"), 3, "state.skipped_in_a_row"),
    (("state", "unet_numbers"), [7], "holds U-Net 7, the model has 1"),
    (("state", "unet_numbers"), "1", "state.unet_numbers"),
    (("optim0",), [], "optim0"),
    (("optim0", "state"), None, "optim0"),
    (("optim0", "state", 0), {}, "optim0"),
    (("optim0", "state", 0, "exp_avg"), torch.zeros(()), "optim0: exp_avg of shape"),
    (("optim0", "state", 0, "exp_avg"), 1.0, "optim0"),
    (("optim0", "state", 0, "step"), torch.zeros(2), "optim0: step of shape"),
    (("optim0", "state", 9999), {"step": 1, "exp_avg": torch.zeros(1), "exp_avg_sq": torch.zeros(1)}, "optim0"),
    (("optim0", "param_groups"), [], "optim0"),
    (("optim0", "param_groups", 0, "params"), [0, 0], "optim0"),
    (("optim0", "param_groups", 0, "betas"), None, "optim0"),
    (("optim0", "param_groups", 0, "lr"), "fast", "optim0"),
    (("scheduler0",), [1], "scheduler0"),
    (("scheduler0", "base_lrs"), [], "scheduler0"),
    (("scheduler0", "last_epoch"), None, "scheduler0"),
    (("scaler0", "scale"), "large", "scaler0"),
    (("gradients0",), 1, "gradients0"),
    (("gradients0", "values"), [], "gradients0"),
    (("gradients0", "values", "final_conv.bias"), torch.zeros(9), "gradients0: final_conv.bias of shape"),
]


def changed(contents, place, value):
    contents = copy.deepcopy(contents)
    *outer, last = place
    inner = contents
    for step in outer:
        inner = inner[step]
    inner[last] = value
    return contents


@pytest.mark.slow
def test_a_refused_load_leaves_the_trainer_as_it_was(good, tmp_path, monkeypatch):
    """Weights, averages, moments, rates, counters, waiting gradients, random state, place in the data; it trains on."""
    monkeypatch.chdir(tmp_path)
    made, twin = (new(precision="fp16") for _ in range(2))
    for each in (made, twin):
        train(each)
        each(pictures(2, seed=9), texts=CAPTIONS[:2])
    before, path = situation(made), tmp_path / "b.pt"
    for damage, message in DAMAGE.values():
        path.write_bytes(good.read_bytes())
        damage(path)
        for strict in (True, False):
            with pytest.raises(CheckpointError, match=f"b.pt: .*({message})"):
                made.load(path, strict=strict)
    contents = read_checkpoint(good)
    for place, value, name in WRONG:
        write_checkpoint(changed(contents, place, value), path)
        with pytest.raises(CheckpointError, match=rf"b\.pt .*{name}"):
            made.load(path)
    for other in (new(model={"unet": {"dim": 16}}), new((4, 8)), new(model={"pred_objectives": "v"}, precision="fp16")):
        other.save(path)
        with pytest.raises(CheckpointMismatch, match=r"b.pt belongs to another model, nothing was loaded"):
            made.load(path)
    unchanged(made, before)
    assert not Path("executed").exists()
    for each in (made, twin):
        each.update()
    assert train(made, 2) == train(twin, 2) and not differing(everything(made), everything(twin))


JUNK = [None, True, 0, -1, 2**40, 0.5, "x", b"x", [], {}, (), [1], {"a": 1}, {0: [1]}, torch.zeros(0), torch.zeros(3),
        torch.zeros(2, 2), torch.tensor(1), torch.zeros(2, dtype=torch.uint8), SEEDS, torch.tensor([1j])]  # fmt: skip


def places(value, path=()):
    if path:
        yield path
    if isinstance(value, dict):
        for name in list(value)[:6]:
            yield from places(value[name], (*path, name))
    elif isinstance(value, list):
        for index in range(min(2, len(value))):
            yield from places(value[index], (*path, index))


@seed(1)
@settings(
    max_examples=15,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_changed_contents_are_loaded_wholly_or_not_at_all(good, reads, data):
    made, contents = reads["trainer"], read_checkpoint(good)
    every = [place for place in places(contents) if place[0] not in ("imagen_params", "imagen_type")]
    for _ in range(data.draw(st.integers(1, 2))):
        place, value = data.draw(st.sampled_from(every)), data.draw(st.sampled_from(JUNK))
        try:
            contents = changed(contents, place, value)
        except (TypeError, LookupError):  # what was there is gone
            continue
    before, reads["contents"] = situation(made), contents
    try:
        made.load("a.pt", strict=data.draw(st.booleans()))
    except CheckpointError as error:
        assert "\n" not in str(error)
        unchanged(made, before)
        return
    made.update() if made.unet_trainers[0].pending else None
    train(made)
    made.load(good)


@pytest.fixture
def reads(good, monkeypatch):
    """A trainer, and the contents that it finds in a.pt; as files of it would take most of the time."""
    held, read = {"trainer": new(precision="fp16")}, read_checkpoint
    held["trainer"].load(good)
    monkeypatch.setattr(
        "imagen_pytorch.training.checkpointing.read_checkpoint",
        lambda path, *rest: held["contents"] if path == "a.pt" else read(path, *rest),
    )
    return held


# -- what is hostile or damaged at every door -------------------------------------------------------------------------

UNET = {"dim": 8, "dim_mults": [1], "layer_attns": False, "layer_cross_attns": False, "attn_heads": 2}
UNET |= {"attn_dim_head": 8, "attn_pool_text": False, "init_cross_embed": False}


def configure(path="a.json", **changes):
    model = {"unets": [UNET], "image_sizes": [8], "text_encoder_name": WORDS, "timesteps": 2}
    settings_ = {"imagen": model, "dataset_name": "in", "dataset": {"batch_size": 2}, "sample_at_every": 0}
    Path(path).write_text(json.dumps({**settings_, **changes}))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with two pictures, their captions and a configuration."""
    monkeypatch.chdir(tmp_path)
    os.mkdir("in")
    for name, colour in {"red": (200, 40, 40), "blue": (50, 70, 200)}.items():
        Image.new("RGB", (8, 8), colour).save(f"in/{name}.png")
        Path(f"in/{name}.txt").write_text(f"a {name} square")
    configure()
    os.mkdir("run")
    return tmp_path


def command(*arguments):
    """As the function that fails: with the error that the one line on standard error tells."""
    done = CliRunner().invoke(main, [str(item) for item in arguments])
    if done.exit_code:
        lines = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
        assert done.exit_code in (1, 2, 4) and len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
        raise CheckpointError(lines[0])
    return done


DOORS = {
    "load": lambda path: new().load(path),
    "load, loosely": lambda path: new().load(path, strict=False, only_model=True),
    "a folder": lambda path: new(checkpoint_path=path.parent, checkpoint_every=1),
    "a step of a folder": lambda path: new().__class__.load_from_checkpoint_folder(_beside(path), 5),
    "load_imagen": load_imagen_from_checkpoint,
    "load_imagen, description only": lambda path: load_imagen_from_checkpoint(path, load_weights=False),
    "a trainer from a file": lambda path: ImagenTrainer(imagen_checkpoint_path=path, verbose=False),
    "imagen train": lambda path: command("train", "--config", "a.json", "--steps", 1, "--checkpoint", path, "-q"),
    "imagen sample": lambda path: command("sample", "x", "--model", path, "-q"),
    "imagen info": lambda path: command("info", path),
    "imagen profile": lambda path: command("profile", "--model", path, "-q"),
    "imagen sample, a folder": lambda path: command("sample", "x", "--model", path.parent, "-q"),
}


def _beside(path):
    made = new(checkpoint_path=path.parent / "empty", checkpoint_every=1)
    made.store.folder = str(path.parent)
    return made


@pytest.mark.filterwarnings("ignore:.*is taken instead")
@pytest.mark.parametrize("damage", ["code", "truncated"])
@pytest.mark.parametrize("name", DOORS)
def test_every_door_refuses_it_and_leaves_it_where_it_is(folder, good, name, damage):
    path = folder / "run" / "checkpoint.5.pt"
    path.write_bytes(good.read_bytes())
    DAMAGE[damage][0](path)
    held = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"checkpoint\.5\.pt|none of the 1 checkpoints in .*run"):
        DOORS[name](path)
    assert path.read_bytes() == held and not Path("executed").exists()
    assert {entry for entry in os.listdir("run") if entry != "empty"} == {"checkpoint.5.pt"}


# -- descriptions that lie --------------------------------------------------------------------------------------------

HUGE = {
    "wide": ({"dim": 10**9}, {}),
    "wide enough to be allocated": ({"dim": 60_000}, {}),
    "many levels": ({"dim_mults": [1] * 1000, "layer_cross_attns": False}, {}),
    "many blocks": ({"num_resnet_blocks": 10**9}, {}),
    "many heads": ({"attn_heads": 10**9}, {}),
    "wide captions": ({}, {"text_embed_dim": 10**8}),
    "many networks": ({}, {"unets": [{**SMALL}] * 50}),
}


@pytest.mark.parametrize("name", HUGE)
def test_a_small_file_that_describes_a_huge_model_is_refused_before_memory_is_taken(good, tmp_path, name):
    """The limit is not on what a model may be, but on what the file holds of it."""
    unet, model = HUGE[name]
    contents = read_checkpoint(good)
    described = contents["imagen_params"]
    described = {**described, "unets": [{**described["unets"][0], **unet}], **model}
    write_checkpoint({**contents, "imagen_params": described}, tmp_path / "a.pt")
    words = (
        "a.pt describes a model that (has nothing to do with what it holds: its networks have more than|"
        "cannot be built: .* must be at most)"
    )
    for load in (load_imagen_from_checkpoint, lambda path: ImagenTrainer(imagen_checkpoint_path=path)):
        with pytest.raises(CheckpointError, match=words):
            load(tmp_path / "a.pt")


# -- what the command says to do next ---------------------------------------------------------------------------------


def hints(done):
    return [line.removeprefix("next: ") for line in done.stderr.splitlines() if line.startswith("next: ")]


def test_the_command_that_is_named_next_is_one(folder):
    (hint,) = hints(command("train", "--config", "a.json", "--steps", 2, "-o", "run"))
    program, *arguments = shlex.split(hint.replace("...", "a red square"))
    assert program == "imagen"
    assert command(*arguments).stdout == "a_red_square.png\n" and Path("a_red_square.png").is_file()


def test_names_with_spaces_are_quoted_there(folder):
    (hint,) = hints(command("train", "--config", "a.json", "--steps", 1, "-o", "my run"))
    command(*shlex.split(hint.replace("...", "a red square"))[1:])
