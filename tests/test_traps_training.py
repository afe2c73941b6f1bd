"""Ways in which trainings went wrong elsewhere, each as a law that holds here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from test_resume import differing, everything
from torch.utils.data import DataLoader
from toys import CAPTIONS, pictures, small_imagen

from imagen_pytorch import ImagenTrainer, load_imagen_from_checkpoint
from imagen_pytorch.checkpoint import CheckpointMismatch, read_checkpoint, write_checkpoint
from imagen_pytorch.data import Collator
from imagen_pytorch.training.loaders import BatchStream
from imagen_pytorch.training.unet_trainer import TrainingDiverged

ROOT = Path(__file__).resolve().parents[1]


def new(sizes=(8,), model=None, **options):
    torch.manual_seed(3)
    often = {"ema_update_after_step": 0, "ema_update_every": 1}
    made = ImagenTrainer(
        small_imagen(sizes, **(model or {})), **{"lr": 1e-2, "verbose": False, "seed": 5, **often, **options}
    )
    return made


def step(made, number=1, **changes):
    size = made.imagen.image_sizes[-1]
    made(**{"images": pictures(size=size), "texts": CAPTIONS, "unet_number": number, **changes})
    return made.update(number)


# -- several processes, as each of them sees itself ------------------------------------------------------------------


def test_every_process_takes_over_all_of_the_newest_checkpoint(tmp_path):
    """Not only the main one, which alone looks for it: weights, averages, moments, rates, counters."""
    options = {"checkpoint_path": tmp_path, "checkpoint_every": 2, "warmup_steps": 9, "cosine_decay_max_steps": 20}
    made = new(**options)
    for _ in range(2):
        step(made)
    made.wait_for_saves()
    other = new(**{**options, "checkpoint_path": tmp_path / "other", "seed": 6})
    path, other.store = str(tmp_path / "checkpoint.2.pt"), made.store
    other.processes.on_main = lambda function: path  # what the main process found; the function is not called here
    assert other.load_from_checkpoint_folder() == path
    assert other.steps.tolist() == [2] and 0 < other.get_lr(1) < 1e-2
    assert not differing(everything(made), everything(other)) and step(made) and step(other)
    assert not differing(everything(made), everything(other))


class Read(torch.utils.data.Dataset):
    """Captioned pictures that note which of them were read."""

    def __init__(self, count):
        self.pictures, self.read = pictures(count), []

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        self.read.append(index)
        return self.pictures[index], CAPTIONS[index % 4]


@pytest.mark.parametrize("by_hand", [False, True])
def test_processes_share_the_validation_data_out_in_their_own_order(by_hand):
    """None of them validates everything, and the training data's shuffling does not reach them."""
    read = []
    for rank in range(2):
        made, items = new(), Read(8)
        made.data.processes = SimpleNamespace(rank=rank, count=2, check_same=lambda *_: None)
        made.add_train_dataset(Read(8), batch_size=4, shuffle=True)
        if by_hand:
            made.add_valid_dataloader(DataLoader(items, batch_size=4))
        else:
            made.add_valid_dataset(items, batch_size=4)
        for _ in range(2):
            next(made.valid_dl_iter)
        read.append(items.read)
    assert read == [[0, 1, 4, 5], [2, 3, 6, 7]]


# -- what is interrupted ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_in_the_midst_of_sampling_leaves_the_model_as_it_was(error):
    """In the second network: the model's own networks are back in their places and modes, and training goes on."""
    made, twin = new((4, 8)), new((4, 8))
    for each in (made, twin):
        assert step(each, 1) and step(each, 2)
    own, modes = list(made.imagen.unets), {name: item.training for name, item in made.named_modules()}
    calls = []

    def fails(*_):
        calls.append(1)
        raise error("in the midst")

    for unet in (made.imagen.unets[1], made.get_ema_unet(2)):
        unet.register_forward_pre_hook(fails)
    for options in ({}, {"max_batch_size": 2}, {"use_non_ema": True}):
        with pytest.raises(error, match="in the midst"):
            made.sample(texts=CAPTIONS, use_tqdm=False, **options)
    assert len(calls) == 3 and all(one is other for one, other in zip(own, made.imagen.unets, strict=True))
    assert modes == {name: item.training for name, item in made.named_modules()}
    made.imagen.unets[1]._forward_pre_hooks.clear()
    for each in (made, twin):
        assert step(each, 1) and step(each, 2)
    assert not differing(everything(made), everything(twin))


# -- data that hold nothing -------------------------------------------------------------------------------------------


def rows_of(*good):
    return [{"image": Image.new("RGB", (8, 8), "red") if fine else b"x", "text": "red"} for fine in good]


@pytest.mark.filterwarnings("ignore:.*is left out")
def test_a_batch_of_nothing_but_damage_is_passed_over():
    made = new()
    made.add_train_dataset(rows_of(True, True, False, False, True, False), batch_size=2, collate_fn=Collator(8))
    sizes = [len(next(made.train_dl_iter)[0]) for _ in range(4)]
    assert sizes == [2, 1, 2, 1] and made.train_dl_iter.epoch == 1
    assert made.train_step() > 0 and made.steps.tolist() == [1]


@pytest.mark.filterwarnings("ignore:.*is left out")
def test_data_of_nothing_but_damage_end_with_a_sentence_and_not_never():
    made = new()
    made.add_train_dataset(rows_of(False, False, False), batch_size=2, collate_fn=Collator(8))
    with pytest.raises(ValueError, match="no batch of the loader holds anything: nothing in the data set can be read"):
        made.train_step()
    stream = BatchStream([1, None], seed=0)
    assert next(stream) == 1
    stream.loader = [None, None]
    with pytest.raises(ValueError, match="no batch of the loader holds anything"):
        next(stream)
    late = BatchStream([1, None], seed=0)
    late.load_state_dict({"seed": 0, "epoch": 3, "position": 1, "orders": []})
    assert next(late) == 1 and late.epoch == 4  # that the rest of an epoch holds nothing is no mistake


# -- limits and messages ----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:the loss of U-Net")
def test_fifty_updates_in_a_row_may_be_skipped():
    made, spoilt = new(), torch.full((4, 3, 8, 8), torch.nan)
    made.unet_trainers[0].skipped_in_a_row = 48
    assert [step(made, images=spoilt) for _ in range(2)] == [False, False]
    with pytest.raises(TrainingDiverged, match="51 updates in a row without a finite loss"):
        step(made, images=spoilt)


def test_a_checkpoint_of_another_model_says_which_names_and_shapes_differ(tmp_path):
    made = new()
    made.save(tmp_path / "a.pt")
    contents = read_checkpoint(tmp_path / "a.pt")
    weights = contents["model"]
    name, bias = "unets.0.final_conv.weight", "unets.0.final_conv.bias"
    shape = tuple(weights[name].shape)
    weights |= {name: torch.zeros(2, 5), "unets.0.mine": weights.pop(bias)}
    write_checkpoint(contents, tmp_path / "b.pt")
    for load in (made.load, load_imagen_from_checkpoint, lambda path: ImagenTrainer(imagen_checkpoint_path=path)):
        with pytest.raises(CheckpointMismatch) as caught:
            load(tmp_path / "b.pt")
        message = str(caught.value)
        assert "b.pt" in message and "\n" not in message
        for words in (f"missing in the file (1): {bias}", "not in the model (1): unets.0.mine",
                      f"of another shape (1): {name}: (2, 5) in the file, {shape} in the model"):  # fmt: skip
            assert words in message, message


# -- importing --------------------------------------------------------------------------------------------------------

QUIET = """
import json, logging, os, pkgutil, random, socket, sys, warnings
def refuse(*arguments, **options): raise AssertionError("a connection was opened")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
import numpy, torch
torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # what torch itself loads late
known = [item for item in logging.root.manager.loggerDict.values() if hasattr(item, "level")]
def state():
    return [logging.root.level, len(logging.root.handlers), logging.root.manager.disable, torch.get_num_threads(),
            [(item.name, item.level, len(item.handlers)) for item in known], str(torch.get_default_dtype()),
            torch.get_rng_state().sum().item(), hash(random.getstate()), numpy.random.get_state()[1].sum().item(),
            torch.is_grad_enabled(), dict(os.environ), os.getcwd(), torch.get_float32_matmul_precision()]
filters, before = list(warnings.filters), state()
import imagen_pytorch
found = pkgutil.walk_packages(imagen_pytorch.__path__, "imagen_pytorch.")
names = [item.name for item in found if "__main__" not in item.name]
for name in names:
    __import__(name)
changed = [[one, other] for one, other in zip(before, state()) if one != other]
heavy = sorted({"transformers", "accelerate", "datasets", "diffusers"} & set(sys.modules))
print(json.dumps([len(names), changed, heavy, warnings.filters[-len(filters):] == filters]))
"""


def test_no_module_changes_anything_when_it_is_imported():
    """Every one of them without a network: levels of logs, filters of warnings, random states, threads, types."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", QUIET], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    count, changed, heavy, filters = json.loads(done.stdout)
    assert count > 100 and changed == [] and heavy == [] and filters
