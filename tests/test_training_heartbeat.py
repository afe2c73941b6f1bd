"""Signs of life between the processes of a run: silence is noticed, however early it begins."""

from __future__ import annotations

import time

import pytest
from torch.distributed import HashStore

from imagen_pytorch.training import heartbeat as module
from imagen_pytorch.training.heartbeat import Heartbeat


@pytest.fixture
def quickly(monkeypatch):
    monkeypatch.setattr(module, "BEAT", 0.05)
    monkeypatch.setattr(module, "SILENCE", 1.0)


def eventually(condition, limit=20.0):
    """Whether a condition comes true within ``limit`` seconds."""
    end = time.monotonic() + limit
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


@pytest.mark.parametrize("beats", [0, 1])
def test_a_process_that_freezes_after_few_signs_of_life_is_missed(quickly, beats):
    store = HashStore()
    for _ in range(beats):
        store.add("imagen_pytorch/alive/1", 1)
    mine = Heartbeat(store, 0, 2)
    try:
        assert mine.lost == []
        assert eventually(lambda: mine.lost == [1])
    finally:
        mine.stop()


def test_a_process_that_has_just_been_made_has_given_a_sign(quickly, monkeypatch):
    """Without waiting for the first beat."""
    monkeypatch.setattr(module, "BEAT", 1000.0)
    store = HashStore()
    mine = Heartbeat(store, 1, 2)
    mine.stop()
    assert store.get("imagen_pytorch/alive/1") == b"1"


def test_processes_that_beat_are_not_missed(quickly, monkeypatch):
    monkeypatch.setattr(module, "SILENCE", 2.0)
    store = HashStore()
    both = [Heartbeat(store, rank, 2) for rank in range(2)]
    try:
        time.sleep(3)  # well beyond the silence that counts
        assert [one.lost for one in both] == [[], []]
    finally:
        for one in both:
            one.stop()
