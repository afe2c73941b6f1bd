"""A fault of one of several processes stops all of them, at once or after the same step; the same command goes on."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest
from fault_toys import HOLD, UNET, Nursery, logged, make_folder, same_files, steps, until

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")

TOTAL = 9
TRAIN = ("train", "--max-steps", TOTAL, "--seed", 3, "--save-every", 1, "--log-every", 1)
WHOLE = {"imagen.pt", "imagen.previous.pt", "imagen_config.json", "loss.png", "metrics.jsonl", "pictures"}
WHOLE |= {".imagen-outputs", "command.txt", "config.resolved.json", "environment.json", "report.html"}
SHARDS = ("--strategy", "fsdp2", "--checkpoint", "runs/shards")
LAUNCHERS = {
    "torchrun": ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2),
    "accelerate": ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", 2, "--num_machines", 1)
    + ("--mixed_precision", "no", "--dynamo_backend", "no"),
}
#: seconds after which nothing may be left of a run that has lost a process
SOON = 60
LOST = "another process of this run has ended"


@pytest.fixture(scope="module")
def nursery(tmp_path_factory):
    made = Nursery(tmp_path_factory.mktemp("talk"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def reference(nursery, tmp_path_factory):
    """The checkpoint of a run on two processes that nothing disturbed."""
    return undisturbed(nursery, tmp_path_factory.mktemp("reference"), "imagen.pt")


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "run")


def undisturbed(nursery, place, name, *arguments, total=TOTAL):
    folder = make_folder(place / "run")
    command = (*TRAIN, "--save-every", 0, "--max-steps", total, *arguments)
    ended = [rank.result() for rank in nursery.ranks(folder, *command)]
    assert [(one.code, one.out) for one in ended] == [(0, f"{name}\n"), (0, "")], ended
    return folder / name


def at(number):
    return HOLD.replace("AT", str(number))


def held(nursery, folder, number, *arguments, before=("", "")):
    """Two processes that wait in front of a step."""
    ranks = nursery.ranks(folder, *TRAIN, *arguments, before=[at(number) + code for code in before])
    for rank, child in enumerate(ranks):
        until((folder / f"held{rank}").exists, child)
    return ranks


def let_go(folder, ranks, limit=SOON):
    """Go on, and see that all of them end before long."""
    (folder / "go").touch()
    return [rank.result(limit) for rank in ranks]


def names(folder):
    return {name for name in os.listdir(folder) if not name.startswith(("held", "go"))}


def finish(nursery, folder, reference, *arguments):
    """The same command once more: nothing is missing from its result."""
    ended = [rank.result() for rank in nursery.ranks(folder, *TRAIN, *arguments)]
    name = ended[0].out.strip()
    assert [one.code for one in ended] == [0, 0] and ended[1].out == "", ended
    assert same_files(folder / name, reference)


# -- signals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_signal_to_one_stops_both_after_the_same_step(nursery, folder, reference, rank):
    """The one that is told finishes its step and announces that the next is the last."""
    ranks = held(nursery, folder, 3)
    ranks[rank].kill(signal.SIGTERM)
    main, other = let_go(folder, ranks)
    assert (main.code, main.out) == (143, "imagen.pt\n") and steps(folder / "imagen.pt") == 5
    assert main.err.endswith("interrupted and saved; the same command goes on\n")
    assert other == (143, "", "")  # only the main process talks
    assert names(folder) == WHOLE
    finish(nursery, folder, reference)


@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_signal_before_the_first_step_is_no_private_matter(nursery, folder, rank):
    slow = (
        "import imagen_pytorch.cli._training as room, os, pathlib, time\nmake = room.make_trainer\n"
        "def held(*arguments):\n    pathlib.Path('held' + os.environ['RANK']).touch()\n"
        "    while not pathlib.Path('go').exists():\n        time.sleep(0.01)\n"
        "    return make(*arguments)\nroom.make_trainer = held\n"
    )
    ranks = nursery.ranks(folder, *TRAIN, before=(slow, slow))
    for number, child in enumerate(ranks):
        until((folder / f"held{number}").exists, child)
    ranks[rank].kill(signal.SIGTERM)
    assert [one.code for one in let_go(folder, ranks)] == [143, 143] and steps(folder / "imagen.pt") == 1


def test_a_signal_in_the_last_step_of_a_unet_stops_both_in_the_next(nursery, tmp_path):
    """And one in the very last step, of which no other process hears, is none."""
    model = {"unets": [UNET, UNET], "image_sizes": [4, 8], "condition_on_text": False}
    folder = make_folder(tmp_path / "run", imagen=model)
    arguments = ("--max-steps", 2, "--unet", "all")
    ranks = held(nursery, folder, 1, *arguments)
    ranks[1].kill(signal.SIGTERM)
    assert [one.code for one in let_go(folder, ranks)] == [143, 143] and steps(folder / "imagen.pt") == 3
    for name in ("held0", "held1", "go"):
        (folder / name).unlink()
    ranks = held(nursery, folder, 3, *arguments)
    ranks[1].kill(signal.SIGTERM)
    assert [one.code for one in let_go(folder, ranks)] == [0, 0] and steps(folder / "imagen.pt") == 4


# -- one process is lost ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 1])
def test_the_death_of_one_ends_the_other(nursery, folder, reference, rank):
    ranks = held(nursery, folder, 3)
    assert ranks[rank].kill().result().code == -signal.SIGKILL
    survivor = let_go(folder, [ranks[1 - rank]])[0]
    assert survivor.code == 1 and survivor.out == ""
    assert LOST in survivor.err.splitlines()[-1] and "Traceback" not in survivor.err, survivor.err
    assert 2 <= steps(folder / "imagen.pt") <= 3
    finish(nursery, folder, reference)
    assert names(folder) == WHOLE


#: signs of life in quick succession, so that silence is noticed in seconds
QUICKLY = (
    "import imagen_pytorch.training.heartbeat as heartbeat\n"
    "heartbeat.BEAT, heartbeat.SILENCE, heartbeat.STILL = 0.3, 6.0, 2.0\n"
)


@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_frozen_process_is_not_waited_for_without_end(nursery, folder, reference, rank):
    """A machine that hangs, or a network that is cut, closes no connection."""
    ranks = held(nursery, folder, 3, before=(QUICKLY, QUICKLY))
    ranks[rank].kill(signal.SIGSTOP)
    began = time.monotonic()
    survivor = let_go(folder, [ranks[1 - rank]])[0]
    assert survivor.code == 1 and survivor.out == "" and time.monotonic() - began < 40
    assert LOST in survivor.err.splitlines()[-1] and "Traceback" not in survivor.err, survivor.err
    ranks[rank].kill(signal.SIGKILL).result()
    assert 2 <= steps(folder / "imagen.pt") <= 4
    finish(nursery, folder, reference)


@pytest.mark.slow
def test_work_of_one_process_alone_may_take_long(nursery, folder, reference):
    """The others wait for it far longer than for a sign of life."""
    slow = QUICKLY + (
        "heartbeat.SILENCE, heartbeat.STILL = 2.0, 1.0\nif os.environ['RANK'] == '0':\n    held_step = held\n"
        "    def working(self, **arguments):\n        if int(self.steps.sum()) == 5:\n            time.sleep(5)\n"
        "        return held_step(self, **arguments)\n    ImagenTrainer.train_step = working\n"
    )
    ended = let_go(folder, held(nursery, folder, 3, before=(slow, slow)))
    assert [one.code for one in ended] == [0, 0], ended
    assert same_files(folder / "imagen.pt", reference)


def test_an_error_of_one_ends_the_other(nursery, folder, reference):
    """Data that one machine cannot read; each process says what it knows."""
    fault = (
        "if os.environ['RANK'] == '1':\n    from imagen_pytorch.data import DataError\n    held_step = held\n"
        "    def broken(self, **arguments):\n        loss = held_step(self, **arguments)\n"
        "        if int(self.steps.sum()) == 4:\n            raise DataError('the drive is gone')\n"
        "        return loss\n    ImagenTrainer.train_step = broken\n"
    )
    main, other = let_go(folder, held(nursery, folder, 3, before=("", fault)))
    assert (other.code, other.out, other.err) == (3, "", "imagen: the drive is gone\n")
    assert (main.code, main.out) == (1, "") and LOST in main.err.splitlines()[-1]
    assert 3 <= steps(folder / "imagen.pt") <= 4
    finish(nursery, folder, reference)


def test_a_main_process_without_room_ends_the_other(nursery, folder, reference):
    limited = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (200_000,) * 2)\n"
    began = time.monotonic()
    main, other = [rank.result(SOON) for rank in nursery.ranks(folder, *TRAIN, before=(limited, ""))]
    assert main.code == 1 and "imagen.pt (about " in main.err and "File too large" in main.err
    assert other.code == 1 and LOST in other.err and time.monotonic() - began < SOON
    assert not (folder / "imagen.pt").exists()
    finish(nursery, folder, reference)


# -- launchers --------------------------------------------------------------------------------------------------------


def workers(launcher):
    """The processes of a launcher by their rank."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = entry.joinpath("stat").read_text().rsplit(")", 1)[1].split()[1]
            variables = entry.joinpath("environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if int(parent) == launcher.pid:
            found |= {int(item[5:]): int(entry.name) for item in variables if item.startswith(b"RANK=")}
    return found


def launched(nursery, folder, launcher, *arguments):
    cpu = {"ACCELERATE_USE_CPU": "true"} if launcher == "accelerate" else {}
    return nursery.launch(folder, *LAUNCHERS[launcher], "-m", "imagen_pytorch", *TRAIN, *arguments, **cpu)


def trains(nursery, folder, launcher, *arguments, after=2):
    """A launched run that has come so far, and its processes."""
    child = launched(nursery, folder, launcher, *arguments)
    until(lambda: logged(folder) >= after, child)
    found = workers(child)
    assert found.keys() == {0, 1}
    return child, found


NEEDS_PROC = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are looked up in /proc")
SLOWLY = pytest.param("accelerate", marks=pytest.mark.slow)


@NEEDS_PROC
@pytest.mark.parametrize("launcher", ["torchrun", SLOWLY])
def test_a_launched_run_stops_together_and_goes_on(nursery, folder, tmp_path, launcher):
    child, found = trains(nursery, folder, launcher, "--max-steps", 9999)
    os.kill(found[1], signal.SIGTERM)
    ended = child.result(SOON)
    assert ended.code != 0 and ended.out == "imagen.pt\n"
    assert ended.err.count("interrupted and saved; the same command goes on") == 1
    assert re.search(r"exitcode *: *143", ended.err), ended.err[-3000:]
    assert names(folder) == WHOLE
    done = steps(folder / "imagen.pt")
    last = [rank.result() for rank in nursery.ranks(folder, *TRAIN, "--max-steps", done + 1)]
    assert [one.code for one in last] == [0, 0]
    assert same_files(folder / "imagen.pt", undisturbed(nursery, tmp_path / "other", "imagen.pt", total=done + 1))


@pytest.mark.slow
@NEEDS_PROC
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_a_launched_run_that_loses_a_process_is_over_soon(nursery, folder, reference, launcher):
    child, found = trains(nursery, folder, launcher, "--max-steps", 9999)
    os.kill(found[1], signal.SIGKILL)
    ended = child.result(SOON)
    assert ended.code != 0 and ended.out == ""
    done = steps(folder / "imagen.pt")
    assert launched(nursery, folder, launcher, "--max-steps", done + 2).result().code == 0
    assert steps(folder / "imagen.pt") == done + 2 and names(folder) == WHOLE


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_what_one_process_finds_before_they_meet_ends_the_launch(nursery, folder, launcher):
    """Another run has the folder: the main process is refused, the other waits for it until the launcher ends it."""
    first = nursery.start(folder, *TRAIN, before=at(2))
    until((folder / "held").exists, first)
    ended = launched(nursery, folder, launcher).result(SOON)
    assert ended.code != 0 and f"another run (pid {first.pid}" in ended.err and not first.ended()


# -- weights in parts -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_folder_of_shards_goes_on_bit_for_bit(nursery, folder, tmp_path, number):
    whole = undisturbed(nursery, tmp_path / "other", "runs/shards", *SHARDS)
    ranks = held(nursery, folder, 3, *SHARDS)
    ranks[1].kill(number)
    ended = let_go(folder, ranks)
    stopped = number == signal.SIGTERM
    assert [one.code for one in ended] == ([143, 143] if stopped else [1, -number])
    assert steps(folder / "runs/shards") == (5 if stopped else 3)
    finish(nursery, folder, whole, *SHARDS)
    assert names(folder / "runs") == {"shards", "shards.previous"}


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [SHARDS, SHARDS[:2]])
def test_what_shards_have_learned_can_be_sampled_by_one_process(nursery, tmp_path, arguments):
    path = undisturbed(nursery, tmp_path, "runs/shards" if arguments == SHARDS else "imagen.pt", *arguments, total=2)
    ended = nursery.run(tmp_path, "sample", "--model", path, "--output", "picture.png")
    assert (ended.code, ended.out) == (0, "picture.png\n"), ended.err
