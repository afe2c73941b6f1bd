"""Tensors that hold NaN or infinities are found by name before they are written."""

from __future__ import annotations

import math

import pytest
import torch
from sharding_toys import Shared

from imagen_pytorch.checkpoints import nonfinite_tensors
from imagen_pytorch.checkpoints.contents import DTYPES

FLOATING = [dtype for dtype in DTYPES.values() if dtype.is_floating_point or dtype.is_complex]


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf], ids=str)
def test_every_floating_type_and_impossible_number(dtype, number):
    tensor = torch.full((3, 2), number).to(dtype)
    held = tensor.float() if dtype.itemsize == 1 else tensor  # 8-bit floats have NaN only, some saturate
    if not torch.isfinite(held).all():
        assert nonfinite_tensors({"a": tensor}) == ["a"]
    if math.isnan(number):
        assert not torch.isfinite(held).all()
    assert nonfinite_tensors({"a": torch.ones(3, dtype=dtype)}) == []


def test_one_number_among_many_is_found_and_named():
    good = {"steps": torch.tensor([1]), "flag": torch.tensor(True), "text": "nan", "number": math.nan}
    bad = torch.ones(2, 5)
    bad[1, 3] = math.inf
    contents = {**good, "model": {"u.weight": bad}, "optim0": {"state": {3: [torch.ones(1), bad]}}, "x": (bad[0],)}
    assert nonfinite_tensors(contents) == ["model/u.weight", "optim0/state/3/1"]
    assert nonfinite_tensors(good) == [] == nonfinite_tensors(torch.empty(0))
    assert nonfinite_tensors(bad) == [""]


def test_large_finite_numbers_are_finite():
    """Their sum is not."""
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert nonfinite_tensors([torch.full((64,), torch.finfo(dtype).max, dtype=dtype)]) == []


def test_opposite_infinities_do_not_cancel():
    assert nonfinite_tensors({"a": torch.tensor([math.inf, -math.inf])}) == ["a"]


def test_tensors_without_data_and_shared_ones():
    whole = torch.ones(4, 2)
    whole[3] = math.nan
    assert nonfinite_tensors({"a": torch.empty(3, device="meta")}) == []
    assert nonfinite_tensors({"a": Shared.of(whole, 0, 2)}) == []
    assert nonfinite_tensors({"a": Shared.of(whole, 1, 2)}) == ["a"]
