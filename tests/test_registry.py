"""Members are found by name; a name that is unknown or taken gets a sentence."""

from __future__ import annotations

import pytest

from imagen_pytorch.registry import Registry, suggestion


@pytest.fixture
def shapes():
    registry = Registry("shape")
    registry.register("square", "box", "quad")(4)
    registry.register("circle")(0)
    return registry


def test_members_by_name_and_alias(shapes):
    assert [shapes[name] for name in ("square", "box", "quad", "circle")] == [4, 4, 4, 0]
    assert "box" in shapes and "triangle" not in shapes


def test_only_canonical_names_are_listed_in_their_order(shapes):
    assert shapes.names() == ("square", "circle") and list(shapes) == ["square", "circle"]


def test_registering_leaves_the_member_as_it_is(shapes):
    @shapes.register("hexagon")
    def hexagon():
        return 6

    assert hexagon() == 6 and shapes["hexagon"] is hexagon


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cirlce", 'no shape "cirlce"; known: square, circle; did you mean "circle"?'),
        ("zzz", 'no shape "zzz"; known: square, circle'),
    ],
)
def test_an_unknown_name_lists_the_known_ones(shapes, name, words):
    with pytest.raises(ValueError) as caught:
        _ = shapes[name]
    assert str(caught.value) == words


@pytest.mark.parametrize(("names", "taken"), [(("square",), "square"), (("new", "box"), "box")])
def test_a_taken_name_is_refused_and_nothing_is_half_done(shapes, names, taken):
    with pytest.raises(ValueError, match=f'the shape "{taken}" is registered already'):
        shapes.register(*names)(1)
    assert shapes["square"] == shapes["box"] == 4 and "new" not in shapes and len(shapes.names()) == 2


def test_suggestions_need_some_likeness():
    assert suggestion("flot", ("flat", "mono")) == '; did you mean "flat"?'
    assert suggestion("xyz", ("flat", "mono")) == "" and suggestion(7, ("flat",)) == ""
