"""Several processes train what one process would: the same batches, the same draws, the same weights on all of them."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from launching import RANKS, run

sys.path.insert(0, str(RANKS))

import shared_run

CHECKS = ("uneven", "even", "per_process", "loader_of_ones_own", "gradient", "alike")
CHECKS += ("unreadable", "unreadable_streams")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Everything that one process and two did: (alone, [rank 0, rank 1])."""
    folder = tmp_path_factory.mktemp("runs")
    before = torch.random.get_rng_state()
    alone = {name: getattr(shared_run, name)() for name in CHECKS}
    with pytest.warns(UserWarning, match="the loss of U-Net 1 is not finite"):
        alone["not_finite"] = shared_run.not_finite()
    alone["only_main"] = shared_run.only_main(folder / "one")
    alone["resumed"] = shared_run.resumed(folder / "one")
    run(
        2,
        "shared_run.py",
        folder,
        *CHECKS,
        "not_finite",
        "only_main:two",
        "resumed:two",
        "resumed_other:one",
        "sharded:shards",
        "sharded_uneven",
        "sharded_unreadable",
    )
    alone["resumed_other"] = shared_run.resumed(folder / "two")
    alone["sharded_uneven"] = shared_run.sharded_uneven()
    alone["sharded"] = shared_run.sharded(folder / "whole")
    alone["sharded_resumed"] = shared_run.sharded_resumed(folder / "shards")
    torch.random.set_rng_state(before)
    return alone, [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


def close(found, wanted, tolerance=1e-6):
    assert len(found) == len(wanted)
    assert max(abs(one - other) for one, other in zip(found, wanted, strict=True)) <= tolerance


def mean(ranks, check, name):
    return [sum(pair) / 2 for pair in zip(*(rank[check][name] for rank in ranks), strict=True)]


def test_the_gradient_is_that_of_the_whole_batch(runs):
    alone, ranks = runs
    for rank in ranks:
        close(rank["gradient"]["gradient"], alone["gradient"]["gradient"])


def test_processes_talk_once_per_update(runs):
    """Though the batch was split into pieces."""
    _, ranks = runs
    assert [rank["gradient"]["talks"] for rank in ranks] == [1, 1]


@pytest.mark.parametrize(
    "check",
    ["uneven", "even", "per_process", "loader_of_ones_own", "only_main", "resumed", "unreadable", "unreadable_streams"],
)
def test_losses_are_those_of_one_process(runs, check):
    """Whatever the batch leaves for a process: all pictures, some, none."""
    alone, ranks = runs
    close(mean(ranks, check, "losses"), alone[check]["losses"])
    if check == "uneven":
        close(mean(ranks, check, "valid"), alone[check]["valid"])


@pytest.mark.parametrize(
    "check",
    [
        "uneven",
        "even",
        "per_process",
        "not_finite",
        "only_main",
        "resumed",
        "alike",
        "unreadable",
        "unreadable_streams",
    ],
)
def test_weights_and_averages_are_the_same_everywhere(runs, check):
    _, ranks = runs
    for name in {"weights", "averages", "folder"} & ranks[0][check].keys():
        assert ranks[0][check][name] == ranks[1][check][name]


def test_each_picture_is_seen_once_in_an_epoch(runs):
    alone, ranks = runs
    every = sorted(alone["uneven"]["read"])
    assert every == list(range(10))
    found = [rank["uneven"]["read"] for rank in ranks]
    # the last batch has one picture: the process without any reads it too, and it counts nothing there
    assert sorted(found[0][:-1] + found[1]) == every and found[0][-1] == found[1][-1]
    own = [rank["loader_of_ones_own"]["read"] for rank in ranks]
    assert not set(own[0]) & set(own[1][:-1]) and set(own[0]) | set(own[1]) == set(range(9))


def test_pictures_that_cannot_be_read_leave_no_process_behind(runs):
    """All are at the same place of the same epoch, which is that of one process."""
    alone, ranks = runs
    for found in (alone, *ranks):
        assert found["unreadable"]["places"] == [[1, 2, 8]] * 2
    close(mean(ranks, "sharded_unreadable", "losses"), alone["unreadable"]["losses"][4:6])


def test_a_bad_picture_of_one_process_skips_the_update_of_all(runs):
    _, ranks = runs
    for rank in ranks:
        assert rank["not_finite"]["taken"] == [True, False, True] and rank["not_finite"]["skipped"] == [1]


def test_the_main_process_saves_and_samples_alone(runs):
    """The run did not hang; there is one file of each."""
    _, ranks = runs
    assert [rank["only_main"]["files"] for rank in ranks] == [["all.pt", "main.pt", "run"]] * 2


def test_a_run_goes_on_alike_on_all_processes(runs):
    _, ranks = runs
    one, other = (rank["resumed"] for rank in ranks)
    for rank in ranks:  # bit for bit what the run without an interruption would have done
        assert rank["resumed"]["weights"] == rank["only_main"]["weights"]
        assert rank["resumed"]["losses"] == rank["only_main"]["losses"][-2:]
    assert one["steps"] == other["steps"] == [4] and one["lr"] == other["lr"]


def test_a_run_goes_on_on_another_number_of_processes(runs):
    """From one to two and from two to one: the same losses, nothing seen twice, and it is said."""
    alone, ranks = runs
    close(mean(ranks, "resumed_other", "losses"), alone["resumed"]["losses"])
    close(alone["resumed_other"]["losses"], mean(ranks, "resumed", "losses"))
    assert "a run on 1 processes, this is one on 2" in ranks[0]["resumed_other"]["said"]
    assert "a run on 2 processes, this is one on 1" in alone["resumed_other"]["said"]
    begun = [index for rank in ranks for index in rank["only_main"]["read"]]  # the third batch: half of an epoch
    assert sorted(begun + alone["resumed_other"]["read"][:4]) == list(range(8))


# -- weights, averages and moments in parts ---------------------------------------------------------------------------


def test_shards_train_what_the_whole_would(runs):
    """Losses, those after going on from a folder of shards and from a file, and a picture from the averages."""
    alone, ranks = runs
    for check in ("sharded", "sharded_uneven"):
        close(mean(ranks, check, "losses"), alone[check]["losses"])
    for which in range(3):
        later = [sum(pair) / 2 for pair in zip(*(rank["sharded"]["later"][which] for rank in ranks), strict=True)]
        close(later, alone["sharded"]["later"][which])
    for rank in ranks:
        close(rank["sharded"]["sample"], alone["sharded"]["sample"], 1e-5)


def test_each_process_holds_its_share(runs):
    """Of weights, average and two moments: all four at one process, about two in each of two."""
    alone, ranks = runs
    assert alone["sharded"]["share"] == 4
    assert sum(rank["sharded"]["share"] for rank in ranks) == pytest.approx(4)
    assert all(abs(rank["sharded"]["share"] - 2) < 0.1 for rank in ranks)


def test_shards_go_on_bit_for_bit(runs):
    alone, ranks = runs
    for found in (alone, *ranks):
        assert found["sharded"]["alike"] and found["sharded"]["before"] == [0]
    assert [rank["sharded"]["files"] for rank in ranks] == [["checkpoint.3"]] * 2
    assert "going on from checkpoint.3" in ranks[0]["sharded"]["said"]


def test_a_folder_of_shards_goes_on_on_one_process(runs):
    alone, ranks = runs
    assert alone["sharded_resumed"]["steps"] == [3]
    close(alone["sharded_resumed"]["losses"], alone["sharded"]["later"][0])


@pytest.mark.slow
def test_a_folder_of_shards_goes_on_on_three_processes(runs, tmp_path):
    alone, _ = runs
    shared_run.sharded(tmp_path / "one")  # a file, which three processes share out
    run(2, "shared_run.py", tmp_path, "sharded:shards")
    run(3, "shared_run.py", tmp_path, "sharded_resumed:shards")
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text())["sharded_resumed"] for rank in range(3)]
    assert [rank["steps"] for rank in ranks] == [[3]] * 3
    losses = [sum(three) / 3 for three in zip(*(rank["losses"] for rank in ranks), strict=True)]
    close(losses, alone["sharded_resumed"]["losses"])


def test_only_the_main_process_talks(runs):
    _, ranks = runs
    assert ranks[0]["resumed_other"]["said"] and not ranks[1]["resumed_other"]["said"]
