"""Calls that do not fit the annotations fail in tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import pytest
import torch
from annotations import checked
from jaxtyping import Float
from torch import Tensor


class Pair(NamedTuple):
    one: int
    other: str


def annotated(annotation):
    """A function of ``value`` with an annotation."""

    def function(value):
        return value

    function.__annotations__["value"] = annotation
    return checked(function)


@pytest.mark.parametrize(
    ("annotation", "good", "bad"),
    [
        (int, (1, True), (1.0, "1", None)),
        (float, (1, 1.5), ("1", None)),
        ("int | None", (1, None), ("1",)),
        (list[int], ([], [1]), ([1, "2"], (1,))),
        (tuple[int, ...], ((), (1, 2)), ((1, "2"), [1])),
        (tuple[int, str], ((1, "a"),), ((1,), (1, 2), (1, "a", "b"))),
        (Sequence[str | int], (["a", 1], "text"), ([1.5], 1)),
        (dict[str, Any], ({"a": None},), ({1: 2}, [])),
        (dict[str, int | Pair], ({"a": 1, "b": Pair(1, "a")},), ({"a": "b"},)),
        (Literal["a", "b"], ("a",), ("c", 1)),
        (Callable[..., int], (len,), (1,)),
        (Callable[[int], int], (lambda one: one,), (1, lambda: 1, lambda one, other: one)),
        (type[Tensor], (torch.nn.Parameter,), (int, 1)),
        (Pair, (Pair(1, "a"),), ((1, "a"),)),
        (Float[Tensor, "b 3"], (torch.zeros(2, 3),), (torch.zeros(2, 2), torch.zeros(2, 3, dtype=int), [1.0])),
        ("Float[Tensor, '2 3'] | None", (torch.zeros(2, 3), None), (torch.zeros(3, 3),)),
        ("a name that only type checkers know", (1, "a"), ()),
    ],
    ids=lambda value: "" if isinstance(value, tuple) else str(value),
)
def test_values_are_checked(annotation, good, bad):
    function = annotated(annotation)
    for value in good:
        assert function(value) is value
    for value in bad:
        with pytest.raises(TypeError, match="value of test_annotations.annotated.*function"):
            function(value)


@checked
def product(x: Float[Tensor, "b c"], *more: Float[Tensor, "b c"], y: Float[Tensor, "2*b c"] | None = None, **names: str
            ) -> Float[Tensor, "c b"]:  # fmt: skip
    return x if names else x.T


def test_sizes_agree_within_a_call():
    a, b = torch.zeros(2, 3), torch.zeros(4, 3)
    assert product(a, a, y=b).shape == (3, 2) and product(b).shape == (3, 4) and product(x=a, y=None).shape == (3, 2)
    for args, options in [((a, b), {}), ((a,), {"y": a}), ((a,), {"name": 1}), ((a,), {"wrong": "result"}), ((1,), {})]:
        with pytest.raises(TypeError):
            product(*args, **options)


def test_the_package_is_checked():
    from imagen_pytorch.nn.norms import GroupNorm

    with pytest.raises(TypeError, match="input of imagen_pytorch.nn.norms.GroupNorm.forward"):
        GroupNorm(2, 4)(torch.zeros(3))
