"""``imagen train`` killed, interrupted, out of room, in the wrong folder, fed with damage: nothing is lost."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import tempfile
import time
from pathlib import Path

import pytest
from fault_toys import HOLD, Nursery, logged, make_folder, same_files, steps, until

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")

TOTAL = 9
#: a training of which every step is saved and logged; the same command starts it and goes on
TRAIN = ("train", "--max-steps", TOTAL, "--seed", 3, "--save-every", 1, "--log-every", 1)
RECORD = {"command.txt", "config.resolved.json", "environment.json"}
WHOLE = {
    *RECORD,
    ".imagen-outputs",
    "imagen.pt",
    "imagen.previous.pt",
    "imagen_config.json",
    "loss.png",
    "metrics.jsonl",
    "pictures",
    "report.html",
}


@pytest.fixture(scope="module")
def nursery(tmp_path_factory):
    made = Nursery(tmp_path_factory.mktemp("talk"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def reference(nursery, tmp_path_factory):
    """The checkpoint of a run that nothing disturbed, not even by a save."""
    folder = make_folder(tmp_path_factory.mktemp("reference") / "run")
    ended = nursery.run(folder, *TRAIN, "--save-every", 0, "--output", "parents/are/made")
    assert (ended.code, ended.out) == (0, "parents/are/made/imagen.pt\n"), ended.err
    return folder / "parents/are/made/imagen.pt"


@pytest.fixture(scope="module")
def trained(nursery, tmp_path_factory):
    """A folder with a checkpoint of four steps and one of three before it."""
    folder = make_folder(tmp_path_factory.mktemp("trained") / "run")
    assert nursery.run(folder, *TRAIN, "--max-steps", 4).code == 0
    return folder


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "run")


@pytest.fixture
def again(trained, tmp_path):
    """A copy of `trained`."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def held(nursery, folder, at, *arguments, before="", **options):
    """A run that waits in front of a step."""
    child = nursery.start(folder, *(arguments or TRAIN), before=HOLD.replace("AT", str(at)) + before, **options)
    until((folder / "held").exists, child)
    return child


def names(folder):
    """What is in a folder, but for the files that tests talk by."""
    return set(os.listdir(folder)) - {"held", "go"}


def finish(nursery, folder, reference):
    """The same command once more: nothing is missing from its result."""
    ended = nursery.run(folder, *TRAIN)
    assert (ended.code, ended.out) == (0, "imagen.pt\n"), ended.err
    assert steps(folder / "imagen.pt") == TOTAL and same_files(folder / "imagen.pt", reference)
    return ended.err


def one_line(ended, code, *words):
    """The last line of talk is a sentence with these words, and there is no traceback."""
    line = ended.err.splitlines()[-1]
    assert ended.code == code and ended.out == "", ended
    assert line.startswith("imagen: ") and "Traceback" not in ended.err, ended.err
    assert all(word in line for word in words), line


# -- signals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_signal_ends_after_the_step_and_the_same_command_goes_on(nursery, folder, reference, number, code):
    child = held(nursery, folder, 3).kill(number)
    (folder / "go").touch()
    ended = child.result()
    assert (ended.code, ended.out, steps(folder / "imagen.pt")) == (code, "imagen.pt\n", 4)
    command = "imagen train --seed 3 --save-every 1 --log-every 1 --max-steps 9"
    assert ended.err.endswith(f"interrupted and saved; to go on: {command}\n")
    assert names(folder) == WHOLE
    finish(nursery, folder, reference)


def test_ctrl_c_in_an_installed_command(nursery, folder):
    """Started as users start it, interrupted at whatever step it has come to."""
    child = nursery.launch(
        folder, "-m", "imagen_pytorch", "train", "--steps", 9999, "--seed", 3, "--save-every", 0, "--log-every", 1
    )
    until(lambda: logged(folder) >= 2, child)
    ended = child.kill(signal.SIGINT).result()
    done = steps(folder / "imagen.pt")
    assert (ended.code, ended.out) == (130, "imagen.pt\n") and done >= 2
    line = "python -m imagen_pytorch train --seed 3 --save-every 0 --log-every 1 --max-steps 9999\n"
    assert "interrupted and saved; to go on: " in ended.err and ended.err.endswith(line.partition(" ")[2])
    assert f"after {done} steps" in nursery.run(folder, *TRAIN, "--max-steps", done + 1).err
    assert steps(folder / "imagen.pt") == done + 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130)])
def test_a_second_signal_ends_a_step_that_hangs(nursery, folder, number, code):
    heard = (
        "from imagen_pytorch.cli._signals import Interruption\nremember = Interruption._remember\n"
        "def noted(self, *arguments):\n    remember(self, *arguments)\n    pathlib.Path('heard').touch()\n"
        "Interruption._remember = noted\n"
    )
    child = held(nursery, folder, 2, before=heard)
    child.kill(number)  # is only remembered, and the step never ends
    until((folder / "heard").exists, child)
    assert not child.ended()
    ended = child.kill(number).result()
    assert ended.code == code and ended.out == "" and "Traceback" not in ended.err
    assert 1 <= steps(folder / "imagen.pt") <= 2


def test_a_signal_before_the_first_step_claims_no_checkpoint(nursery, folder):
    slow = HOLD.replace("from imagen_pytorch import ImagenTrainer", "import imagen_pytorch.cli._training as room")
    slow = slow.replace("ImagenTrainer.train_step", "room.make_trainer").replace("self, **arguments", "*arguments")
    slow = slow.replace("int(self.steps.sum()) == AT", "True")
    child = nursery.start(folder, *TRAIN, before=slow)
    until((folder / "held").exists, child)
    child.kill(signal.SIGTERM)
    (folder / "go").touch()
    ended = child.result()
    assert (ended.code, ended.out) == (143, "") and names(folder) == {"imagen_config.json", "pictures"}
    assert ended.err.endswith("interrupted before the first step; the same command starts again\n")


# -- terminals and pipes ----------------------------------------------------------------------------------------------

#: nothing is saved before the end
QUIETLY = ("--save-every", 0)
#: at step 2 the reader of standard error, or of all output, goes
UNHEARD = """
import os
from imagen_pytorch import ImagenTrainer
step = ImagenTrainer.train_step
def unheard(self, **arguments):
    if int(self.steps.sum()) == 1:
        reader, writer = os.pipe()
        os.close(reader)
        for number in NUMBERS:
            os.dup2(writer, number)
    return step(self, **arguments)
ImagenTrainer.train_step = unheard
"""
#: in front of step 3 the terminal closes
HANGUP = """
import os, signal
from imagen_pytorch import ImagenTrainer
step = ImagenTrainer.train_step
def closed(self, **arguments):
    if int(self.steps.sum()) == 2:
        os.kill(os.getpid(), signal.SIGHUP)
    return step(self, **arguments)
ImagenTrainer.train_step = closed
"""


@pytest.mark.parametrize(
    "lost",
    [
        "import sys; sys.stdout = None",
        "import sys; sys.stderr = None",
        "import os; os.dup2(os.open('/dev/full', os.O_WRONLY), 2)",
    ],
)
def test_nobody_has_to_listen(nursery, tmp_path, lost):
    """Standard output or error is closed before the start, or a file on a full disk."""
    folder = make_folder(tmp_path / "run")
    ended = nursery.run(folder, *TRAIN, *QUIETLY, before=lost)
    assert (ended.code, steps(folder / "imagen.pt")) == (0, 9), ended
    assert ended.out == ("" if "stdout" in lost else "imagen.pt\n")


@pytest.mark.parametrize(("numbers", "out"), [((2,), "imagen.pt\n"), ((1, 2), "")])
def test_a_closed_pipe_ends_the_training_saved(nursery, tmp_path, numbers, out):
    folder = make_folder(tmp_path / "run")
    ended = nursery.run(folder, *TRAIN, *QUIETLY, before=UNHEARD.replace("NUMBERS", str(numbers)))
    assert (ended.code, ended.out, steps(folder / "imagen.pt")) == (141, out, 2)


@pytest.mark.parametrize(("ignored", "code", "taken"), [(False, 129, 3), (True, 0, 9)])
def test_a_terminal_that_closes_ends_the_training_saved_unless_it_was_started_by_nohup(
    nursery, tmp_path, ignored, code, taken
):
    folder = make_folder(tmp_path / "run")
    handler = "SIG_IGN" if ignored else "SIG_DFL"
    before = f"import signal\nsignal.signal(signal.SIGHUP, signal.{handler})\n{HANGUP}"
    ended = nursery.run(folder, *TRAIN, *QUIETLY, before=before)
    assert ended.code == code and steps(folder / "imagen.pt") == taken, ended.err
    assert ended.out == "imagen.pt\n" and logged(folder) == taken


# -- kills ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kills", "seed"), [(6, 0), pytest.param(30, 1, marks=pytest.mark.slow)])
def test_kills_at_random_moments_cost_at_most_one_save(nursery, folder, tmp_path, kills, seed):
    """While step N is trained, N - 1 is being saved: N - 2 is safe."""
    dice, saved = random.Random(seed), 0
    for _ in range(kills):
        child = nursery.start(folder, *TRAIN, "--max-steps", 9999)
        if dice.random() < 0.7:
            before = logged(folder)
            until(lambda: logged(folder) != before, child)  # noqa: B023 - asked for at once
            time.sleep(dice.uniform(0, 0.3))
        else:
            time.sleep(dice.uniform(0, 1.0))
        assert child.kill().result().code == -signal.SIGKILL
        now, seen = steps(folder / "imagen.pt"), logged(folder)
        assert now == saved or now > saved and seen - 2 <= now <= seen, (saved, now, seen)
        saved = now
    rest = ("--max-steps", saved + 2)
    assert nursery.run(folder, *TRAIN, *rest).code == 0
    assert steps(folder / "imagen.pt") == saved + 2
    extra = {name for name in names(folder) if re.search(r"-[0-9]+\.", name)}  # killed before the first save
    assert names(folder) - extra == WHOLE
    other = make_folder(tmp_path / "other")
    assert nursery.run(other, *TRAIN, *rest, "--save-every", 0).code == 0
    assert same_files(folder / "imagen.pt", other / "imagen.pt")


# -- no room, no permission -------------------------------------------------------------------------------------------


def test_without_room_the_run_stops_and_the_checkpoint_stays(nursery, again):
    before = (again / "imagen.pt").read_bytes()
    ended = nursery.run(again, *TRAIN, largest=len(before) // 2)
    one_line(ended, 1, "imagen.pt (about ", " bytes): ", "File too large", "what was there before is untouched")
    assert (again / "imagen.pt").read_bytes() == before
    assert names(again) == WHOLE and logged(again) <= 6  # known at the second save


def test_without_room_a_run_that_may_go_on_does_and_fails_in_the_end(nursery, tmp_path):
    folder = make_folder(tmp_path / "run", trainer={"on_save_error": "warn"})
    ended = nursery.run(folder, *TRAIN, largest=200_000)
    assert logged(folder) == TOTAL and "training goes on, as on_save_error says" in ended.err
    one_line(ended, 1, "imagen.pt (about ", "File too large")
    assert not names(folder) & {"imagen.pt", "imagen.previous.pt"}
    assert [path.name for path in folder.glob(".*")] == [".imagen-outputs"]


def test_room_that_comes_back_in_time_is_enough(nursery, tmp_path, reference):
    """All saves but the last are refused by a folder that is in the way."""
    folder = make_folder(tmp_path / "run", trainer={"on_save_error": "warn"})
    child = held(nursery, folder, 0)
    (folder / "imagen.pt").mkdir()
    (folder / "go").touch()
    until(lambda: logged(folder) >= 3, child)
    assert "warning: " in until(lambda: child.said()[1], child)
    (folder / "imagen.pt").rmdir()
    ended = child.result()
    assert ended.code == 0 and same_files(folder / "imagen.pt", reference), ended.err


def unusable(folder, kind):
    """An output folder in which nothing can be made, and the options that name it."""
    if kind == "below a file":
        return ("--output", "pictures/0.png/run"), "pictures/0.png/run"
    if kind == "a folder in the way":
        (folder / "out" / "imagen.pt").mkdir(parents=True)
        (folder / "out").chmod(0o777)
        return ("--output", "out"), "imagen.pt"
    (folder / "out").mkdir()
    (folder / "out").chmod(0o555)
    return (
        "--output",
        "out",
        *(["--checkpoint", folder / "x.pt"] if kind == "read-only, saves elsewhere" else []),
    ), "out"


@pytest.mark.parametrize("kind", ["below a file", "a folder in the way", "read-only", "read-only, saves elsewhere"])
def test_a_folder_that_cannot_be_written_to_is_known_before_training(nursery, kind):
    place = Path(tempfile.mkdtemp())  # where everybody may look, unlike the folders of tests
    place.chmod(0o777)
    try:
        folder = make_folder(place / "run")
        folder.chmod(0o777)
        arguments, name = unusable(folder, kind)
        nobody = "import os; os.getuid() or os.setuid(65534)"  # for whom read-only means it
        ended = nursery.run(folder, *TRAIN, *arguments, before=nobody)
        one_line(ended, 4 if kind == "a folder in the way" else 2, name)
        assert not list(place.rglob("metrics*")) and "U-Net 1" not in ended.err
        assert kind == "a folder in the way" or ended.err.count("\n") == 2  # the configuration was read, no data
    finally:
        shutil.rmtree(place)


# -- two at once ------------------------------------------------------------------------------------------------------


def test_one_folder_has_one_run(nursery, folder, reference):
    first = held(nursery, folder, 3)
    until(lambda: steps(folder / "imagen.pt") == 3, first)
    before = {path: path.read_bytes() for path in folder.glob("*.*")}
    began = time.monotonic()
    ended = nursery.run(folder, *TRAIN)
    one_line(ended, 2, f"another run (pid {first.pid}", "is saving into ", "imagen.pt")
    assert time.monotonic() - began < 30
    assert before == {path: path.read_bytes() for path in folder.glob("*.*")} and not first.ended()
    assert first.kill().result().code == -signal.SIGKILL
    assert "going on from imagen.pt after 3 steps" in finish(nursery, folder, reference)
    assert names(folder) == WHOLE


def test_a_run_whose_folder_was_deleted_does_not_replace_what_another_one_saved(nursery, folder):
    first = held(nursery, folder, 3, *TRAIN, "--output", "out")
    until(lambda: steps(folder / "out" / "imagen.pt") == 3, first)
    shutil.rmtree(folder / "out")
    ended = nursery.run(folder, *TRAIN, "--output", "out", "--max-steps", 2)
    assert ended.code == 0, ended.err
    before = (folder / "out" / "imagen.pt").read_bytes()
    (folder / "go").touch()
    one_line(first.result(), 2, "out/imagen.pt")
    assert (folder / "out" / "imagen.pt").read_bytes() == before and steps(folder / "out" / "imagen.pt") == 2


# -- damage -----------------------------------------------------------------------------------------------------------


def damage(path, kind):
    content = bytearray(path.read_bytes())
    if kind == "cut":
        content = content[: len(content) * 2 // 3]
    elif kind == "flipped":
        content[len(content) // 2] ^= 1
    else:
        content = bytearray()
    path.write_bytes(content)
    return bytes(content)


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("cut", "empty")]


@pytest.mark.parametrize("kind", ["flipped", *SLOW])
def test_a_damaged_checkpoint_is_replaced_from_the_one_before(nursery, again, reference, kind):
    damage(again / "imagen.pt", kind)
    sampled = nursery.run(again, "sample", "--seed", 1)
    one_line(sampled, 4, "cannot read the checkpoint ", "imagen.pt: ", "--model ./imagen.previous.pt")
    said = finish(nursery, again, reference)
    warning = next(line for line in said.splitlines() if line.startswith("warning: "))
    assert "imagen.pt: " in warning and "imagen.previous.pt is taken instead" in warning
    assert "after 3 steps" in said
    assert steps(again / "imagen.previous.pt") == TOTAL - 1


@pytest.mark.parametrize("kind", ["flipped", "cut", "empty"])
def test_a_damaged_checkpoint_alone_is_left_alone(nursery, again, kind):
    (again / "imagen.previous.pt").unlink()
    content = damage(again / "imagen.pt", kind)
    one_line(nursery.run(again, *TRAIN), 4, "cannot go on from imagen.pt", "cannot read the checkpoint ")
    assert (again / "imagen.pt").read_bytes() == content and names(again) == WHOLE - {"imagen.previous.pt"}
    sampled = nursery.run(again, "sample")
    one_line(sampled, 4, "cannot read the checkpoint ", "imagen.pt: ")
    assert "previous" not in sampled.err


def test_the_one_before_survives_until_a_whole_one_is_there(nursery, again):
    """Gone on from it, the damaged one does not take its place, also not when saves fail."""
    config = json.loads((again / "imagen_config.json").read_text())
    config["trainer"]["on_save_error"] = "warn"
    (again / "imagen_config.json").write_text(json.dumps(config))
    damaged, before = damage(again / "imagen.pt", "flipped"), (again / "imagen.previous.pt").read_bytes()
    ended = nursery.run(again, *TRAIN, largest=200_000)
    assert ended.code == 1 and logged(again) == TOTAL
    assert (again / "imagen.pt").read_bytes() == damaged and (again / "imagen.previous.pt").read_bytes() == before


# -- bad data and numbers ---------------------------------------------------------------------------------------------


def listed(folder):
    return [json.loads(line)["name"] for line in (folder / "skipped.jsonl").read_text().splitlines()]


def cut(folder, numbers):
    for number in numbers:
        path = folder / "pictures" / f"{number}.png"
        path.write_bytes(path.read_bytes()[:50])


def test_a_few_bad_pictures_are_named_and_the_rest_is_trained_on(nursery, tmp_path):
    """One is none from the beginning; one becomes bad while it is trained on."""
    folder = make_folder(tmp_path / "run", 40, dataset={"batch_size": 10})
    (folder / "pictures" / "7.png").write_bytes(b"nothing")
    child = held(nursery, folder, 1)
    cut(folder, [33])
    (folder / "go").touch()
    ended = child.result()
    assert ended.code == 0 and steps(folder / "imagen.pt") == TOTAL, ended.err
    assert sorted(map(os.path.basename, listed(folder))) == ["33.png", "7.png"]
    assert "2 of 40 images were left out: skipped.jsonl" in ended.err


def test_too_many_bad_pictures_stop_the_run(nursery, tmp_path):
    """Ten of forty: known at the start by their first bytes, or found in the middle; what was learned is kept then."""
    folder = make_folder(tmp_path / "run", 40, dataset={"batch_size": 10})
    child = held(nursery, folder, 2, *TRAIN, "--save-every", 0)
    cut(folder, range(10))
    (folder / "go").touch()
    one_line(child.result(), 3, " of 40 images", "max_skipped_share", "entry of the configuration", "skipped.jsonl")
    assert 2 < steps(folder / "imagen.pt") < TOTAL and 2 < len(listed(folder)) <= 10
    kept = (folder / "imagen.pt").read_bytes()
    for number in range(10):
        (folder / "pictures" / f"{number}.png").write_bytes(b"nothing")
    one_line(nursery.run(folder, *TRAIN), 3, "10 of 40 images", "max_skipped_share")
    assert (folder / "imagen.pt").read_bytes() == kept


def test_numbers_that_are_none_end_the_run_and_spare_the_checkpoint(nursery, tmp_path):
    folder = make_folder(tmp_path / "run", trainer={"max_skipped_steps": 3})
    nan = HOLD.replace("while not", "while False and not").replace("AT", "2") + (
        "from imagen_pytorch.cascade.cascade import Cascade\nloss = Cascade.loss\n"
        "Cascade.loss = lambda self, *a: loss(self, *a) * (float('nan') if pathlib.Path('held').exists() else 1)\n"
    )
    ended = nursery.run(folder, *TRAIN, before=nan)
    one_line(ended, 1, "4 updates in a row without a finite loss", "lower lr")
    assert steps(folder / "imagen.pt") == 2
    assert names(folder) == WHOLE - {"loss.png", "report.html"}
