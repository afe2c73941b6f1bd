"""Networks and checkpoints that are shared out among processes."""

from __future__ import annotations

import pytest
import torch
from launching import run
from sharding_toys import LOCAL, Shared

from imagen_pytorch.checkpoints.contents import local_part
from imagen_pytorch.checkpoints.sharded import read_sharded
from imagen_pytorch.training.fsdp import gradient_norm

# -- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "choices",
    [
        "pieces checkpointing",
        pytest.param("levels video", marks=pytest.mark.slow),
    ],
)
def test_two_processes_train_what_one_does_and_one_reads_what_two_wrote(tmp_path, choices):
    run(2, "train_sharded.py", str(tmp_path), *choices.split())
    contents = read_sharded(LOCAL, str(tmp_path / "checkpoint.2"))
    expected = torch.load(tmp_path / "alone.pt", weights_only=True)
    assert contents["steps"].tolist() == [2]
    for name, item in expected["alone"].items():
        found: object = contents
        for step in name.split("/"):
            found = found[int(step) if step.isdigit() else step]
        torch.testing.assert_close(found, item, atol=1e-5, rtol=1e-5)
    # the state dict of an ordinary optimizer, entry by entry
    mine, theirs = contents["optim0"], expected["optimizer"]
    assert mine["param_groups"] == theirs["param_groups"]
    assert {index: set(state) for index, state in mine["state"].items()} == {
        index: set(state) for index, state in theirs["state"].items()
    }
    assert all(state["step"] == theirs["state"][index]["step"] for index, state in mine["state"].items())


def test_norm_and_clipping_of_ordinary_gradients_are_those_of_torch():
    found, expected = ([torch.nn.Parameter(torch.zeros(size)) for size in (3, 0, 7)] for _ in range(2))
    for mine, theirs in zip(found, expected, strict=True):
        mine.grad = torch.randn(mine.shape)
        theirs.grad = mine.grad.clone()
    norm = gradient_norm(found)
    torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_(expected, 0.5))
    torch.nn.utils.clip_grads_with_norm_(found, 0.5, norm)
    assert all(torch.allclose(mine.grad, theirs.grad) for mine, theirs in zip(found, expected, strict=True))
    found[0].grad[1] = torch.nan
    assert not torch.isfinite(gradient_norm(found))
    assert gradient_norm([torch.nn.Parameter(torch.zeros(3))]) == 0


# -- who holds what ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("dim", [0, 1])
def test_the_parts_of_all_processes_are_the_tensor(rows, count, dim):
    whole = torch.arange(rows * 3.0).view(rows, 3)
    rebuilt, held = torch.full_like(whole, -1), 0
    for rank in range(count):
        part, start = local_part(Shared.of(whole, rank, count, dim))
        place = tuple(slice(first, first + size) for first, size in zip(start, part.shape, strict=True))
        rebuilt[place] = part
        held += part.numel()
    assert torch.equal(rebuilt, whole) and held == whole.numel()


def test_other_ways_to_share_out_are_refused():
    tensor = Shared.of(torch.zeros(4, 2), 0, 2)
    tensor.part = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"should hold \(2, 2\) of \(4, 2\), got \(3, 2\)"):
        local_part(tensor)
