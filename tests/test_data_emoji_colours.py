"""Colours of emoji64: the right names, images of other colours, and captions that say so."""

from __future__ import annotations

import pickle
from collections import Counter
from contextlib import nullcontext

import pytest
import torch
from cascade_toys import unchecked

from imagen_pytorch.data import emoji64
from imagen_pytorch.data.emoji import atlas, index, repainted, split_of, tile_of
from imagen_pytorch.data.emoji_captions import (
    BACKGROUNDS,
    COLOUR_WORD,
    COLOURFUL,
    WORDINGS,
    Scene,
    dense,
    dominant_colour,
    noun_phrase,
    painted,
    short,
)  # fmt: skip
from imagen_pytorch.data.emoji_colours import (
    NAMES,
    TARGETS,
    Colour,
    Look,
    from_oklab,
    is_painted,
    looks,
    named,
    names_of,
    recoloured,
    to_oklab,
    to_polar,
)  # fmt: skip
from imagen_pytorch.data.emoji_words import EVERYDAY


@pytest.fixture(autouse=True)
def checks(request):
    """Annotations are checked where single colours and images are looked at, and nowhere else: it takes most of the
    time."""
    with unchecked() if request.node.name.startswith(LOOPS) else nullcontext():
        yield


#: tests that look at many images
LOOPS = ("test_recoloured_images_look", "test_what_keeps_its_colour", "test_copies_are_versions")
THINGS = ("animals-nature", "food-drink", "objects", "travel-places")
FEW = dict(styles=["flat", "3d"], groups=THINGS, image_size=8, limit=60)
COLOURS = {
    "black": "000000 31373d 222222 111122", "white": "ffffff dddddd e6e3eb f4f4f4",
    "gray": "808080 99a1a8 666666 546e7a",
    "red": "ff0000 dd2e44 f8312f c62828 aa1111", "orange": "ff8822 ffa500 f4900c ff6600 ee8811",
    "yellow": "ffff00 ffcc4d fcd53f ffc83d fdd835", "green": "008000 77b255 00d26a 5c913b 9acd32 00aa55",
    "blue": "0000ff 55acee 3b88c3 0074ba 66ccff 001f80", "purple": "800080 aa8ed6 8d65c5 7f00ff",
    "pink": "ffc0cb ff69b4 f4abba ff8ba0 ee4488", "brown": "8b4513 6d4534 a0522d 795548 885555 aa6644",
    "beige": "f5deb3 e1c699 d2b48c e8d5b0",
}  # fmt: skip


def rgb(code: str) -> list[float]:
    return [int(code[place : place + 2], 16) / 255 for place in (0, 2, 4)]


def tile(code: str, style: str = "flat") -> torch.Tensor:
    return atlas(style)[index().styles[style].index(code)]


def code_of(text: str) -> str:
    return next(code for code, entry in index().entries.items() if entry.text == text)


def square(*codes: str) -> torch.Tensor:
    """An opaque tile of vertical stripes."""
    columns = torch.tensor([rgb(code) for code in codes]).mul(255).round().byte()
    stripes = columns.T[:, None].repeat_interleave(60 // len(codes), 2).expand(3, 60, 60)
    return torch.cat([stripes, torch.full((1, 60, 60), 255, dtype=torch.uint8)])


# -- names ------------------------------------------------------------------------------------------------------------


def test_oklab_and_back():
    colours = torch.rand(500, 3, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(from_oklab(to_oklab(colours)), colours, atol=1e-4)
    # reference: the table of sRGB primaries in Ottosson's article (white; red)
    white, red = to_oklab(torch.tensor([[1.0, 1, 1], [1, 0, 0]]))
    assert white.tolist() == pytest.approx([1, 0, 0], abs=1e-3)
    assert red.tolist() == pytest.approx([0.628, 0.225, 0.126], abs=1e-3)


@pytest.mark.parametrize("name", COLOURS)
def test_colours_have_the_names_that_people_give_them(name):
    colours = torch.tensor([rgb(code) for code in COLOURS[name].split()])
    assert [NAMES[place] for place in named(colours)] == [name] * len(colours)
    # the table of five bits a channel agrees
    pixels = torch.cat([(colours * 255).round().byte(), torch.full((len(colours), 1), 255, dtype=torch.uint8)], 1)
    found = [NAMES[place] for place in names_of(pixels[..., None, None]).flatten()]
    assert sum(each == name for each in found) >= len(found) - 1


def test_backgrounds_and_targets_have_their_own_names():
    for name, colour in BACKGROUNDS.items():
        assert NAMES[named(torch.tensor([colour]) / 255)[0]] == name
    for name, (lightness, chroma, hue) in TARGETS.items():
        angle = torch.deg2rad(torch.tensor(hue))
        lab = torch.tensor([lightness, chroma * angle.cos(), chroma * angle.sin()])
        assert NAMES[named(from_oklab(lab[None]))[0]] == name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("red heart", "red"), ("green apple", "green"), ("blue heart", "blue"), ("banana", "yellow"),
        ("carrot", "orange"), ("elephant", "gray"), ("pig", "pink"), ("bear", "brown"),
        ("broccoli", "green"), ("ghost", "white"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("style", ["noto", "twemoji", "flat", "3d"])
def test_things_have_their_colour(text, name, style):
    (look,) = looks(tile(code_of(text), style)[None])
    assert name in [colour.name for colour in look.colours[:2]]


def test_places_and_fractions():
    blue, green, red = "3b88c3", "77b255", "dd2e44"
    (look,) = looks(square(blue, green, red)[None])
    assert {(each.name, each.place) for each in look.colours} == {
        ("blue", "on the left"), ("green", ""), ("red", "on the right")}  # fmt: skip
    assert [each.fraction for each in look.colours] == pytest.approx([1 / 3] * 3) and look.covered == 1
    (turned,) = looks(square(blue, red).transpose(1, 2)[None])
    assert {(each.name, each.place) for each in turned.colours} == {("blue", "at the top"), ("red", "at the bottom")}


def test_transparent_pixels_do_not_count():
    half = square("dd2e44", "77b255")
    half[3, :, 30:] = 0
    (look,) = looks(half[None])
    assert [(each.name, each.fraction, each.place) for each in look.colours] == [("red", 1, "")] and look.covered == 0.5
    empty = torch.zeros(1, 4, 8, 8, dtype=torch.uint8)
    assert looks(empty) == [Look((), 0.0)]


# -- other colours ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_of_another_colour(target):
    before = square("3b88c3", "3b88c3", "808080")
    after = recoloured(before, target)
    assert looks(after[None])[0].colours[0].name == target
    assert torch.equal(after[:, :, 40:], before[:, :, 40:])  # grey stays
    assert torch.equal(after[3], before[3]) and after.dtype == torch.uint8


def test_other_hues_stay_and_shades_stay_shades():
    before = square("3b88c3", "1e5f8c", "77b255")
    after = recoloured(before, "purple")
    assert torch.equal(after[:, :, 40:], before[:, :, 40:])
    light, dark = (to_polar(to_oklab(after[:3, 0, place].float() / 255))[0] for place in (5, 25))
    assert light > dark + 0.1


def test_what_keeps_its_colour():
    flag, person, skull = code_of("flag of Japan"), code_of("woman"), code_of("skull")
    found = {(key.code, key.style): key for key in emoji64("all", ("flat", "mono", "twemoji"), image_size=8).keys}
    for code, style in ((flag, "twemoji"), (person, "flat"), (skull, "flat"), ("2764", "mono")):
        assert not any(repainted(found[code, style], target) for target in TARGETS)
    heart = found["2764", "flat"]
    assert repainted(heart, "red") is None  # has it already
    assert repainted(heart, "blue") is None  # "blue heart" is another concept
    # no concept is named by the result of another one
    texts = {entry.text for entry in index().entries.values()}
    blue = [key for key in emoji64("all", "flat", "symbols", image_size=8, limit=30).keys if repainted(key, "blue")]
    assert blue and not {painted(index().entries[key.code].text, "blue") for key in blue} & texts


def test_recoloured_images_look_as_their_captions_say():
    data = emoji64(**FEW, recolour=1.0, channels=4)
    colours = [variant.colour for variant in data.variants]
    given = [place for place, colour in enumerate(colours) if colour]
    assert 0.3 < len(given) / len(data) < 0.9 and set(colours) == {"", *TARGETS}
    for place in given:
        key = data.keys[place]
        assert is_painted(repainted(key, colours[place]), colours[place]) and colours[place] in data.captions[place]
        assert torch.equal(tile_of(key, colours[place])[3], atlas(key.style)[key.place][3])
    before = emoji64(**FEW, channels=4)
    same = [torch.equal(one, other) for one, other in zip(data.pixels, before.pixels, strict=True)]
    assert same == [not colour for colour in colours]


def test_no_image_has_the_colour_of_its_background():
    data = emoji64(**FEW, recolour=1.0, background="random")
    assert not any(variant.colour == ground for variant, ground in zip(data.variants, data.backgrounds, strict=True))


def test_a_fraction_gets_another_colour():
    every, some = (Counter(bool(variant.colour) for variant in emoji64(**FEW, recolour=part).variants)
                   for part in (1.0, 0.3))  # fmt: skip
    # four standard deviations
    assert abs(some[True] - 0.3 * every[True]) < 4 * (0.21 * every[True]) ** 0.5
    assert not any(variant.colour for variant in emoji64(**FEW).variants)


# -- copies -----------------------------------------------------------------------------------------------------------


def test_copies_are_versions_of_the_same_images():
    options = dict(FEW, limit=40, wording="mixed", background="random", recolour=0.5)
    one, three = emoji64(**options), emoji64(**options, copies=3)
    assert len(three) == 3 * len(one) == 120 and three.keys == one.keys * 3
    assert three.captions[:40] == one.captions and torch.equal(three.pixels[:40], one.pixels)
    assert three.variants[:40] == one.variants and [variant.copy for variant in three.variants[::40]] == [0, 1, 2]
    assert len(set(three.captions)) > 100 and three.identity() != emoji64(**options, copies=2).identity()
    retry = pickle.loads(pickle.dumps(three))
    assert retry.captions == three.captions and torch.equal(retry[110][0], three[110][0])


def test_without_the_new_options_nothing_is_different():
    data = emoji64(**FEW)
    assert data.identity() == [*data.keys, *data.backgrounds]


# -- captions ---------------------------------------------------------------------------------------------------------

RED = Look((Colour("red", 0.7, ""), Colour("green", 0.2, "at the top"), Colour("white", 0.05, "")), 0.5)


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("automobile", "an orange automobile"), ("red heart", "an orange heart"), ("grapes", "orange grapes"),
        ("light blue heart", "an orange heart"), ("keycap 5", "the orange keycap 5"),
        ("Aries", "the orange sign Aries"),
        ("flag of Japan", "the flag of Japan"), ("cat with wry smile", "an orange cat with wry smile"),
    ],
)  # fmt: skip
def test_names_with_a_colour(text, phrase):
    assert noun_phrase(index().entries[code_of(text)], "orange") == phrase


def test_dense_captions_say_what_is_seen():
    entry = index().entries[code_of("red apple")]
    text = dense(Scene(entry, "3d", "white", "0", look=RED))
    start = "a 3d render of a red apple, mostly red with some green at the top, on a white background"
    assert text.startswith(f"{start}, ")
    tags = text.removeprefix(f"{start}, ").split(", ")
    assert len(tags) == 3 and set(tags) <= set(entry.tags)
    assert "background" not in dense(Scene(entry, "3d", None, "0", look=RED))
    filled = RED._replace(covered=0.8, colours=(Colour("red", 0.95, ""),))
    assert ", all red, filling the image, " in dense(Scene(entry, "3d", "white", "0", look=filled))
    assert ", small, " in dense(Scene(entry, "3d", "white", "0", look=RED._replace(covered=0.1)))
    assert "mostly" not in dense(Scene(entry, "mono", "white", "0"))


def test_short_captions_are_what_people_ask_for():
    scene = Scene(index().entries[code_of("automobile")], "3d", "white", "", look=RED)
    found = Counter(short(scene._replace(seed=f"{number}")) for number in range(600))
    assert {"a car", "a red car", "a 3d render of an automobile on a white background"} < set(found)
    for word, fraction in (("car", 1 / 2), ("red", 1 / 3), ("3d render", 2 / 3), ("background", 1 / 2)):
        count = sum(number for text, number in found.items() if word in text)
        assert abs(count - 600 * fraction) < 4 * (600 * fraction * (1 - fraction)) ** 0.5
    scenes = [scene._replace(background="blue", seed=f"{number}") for number in range(50)]
    assert all("on a blue background" in short(each) for each in scenes)


def test_colours_that_are_named():
    scene = Scene(index().entries[code_of("automobile")], "3d", "white", "", look=RED)
    assert dominant_colour(scene) == "red"
    for text in ("flag of Japan", "woman", "green apple"):
        assert dominant_colour(scene._replace(entry=index().entries[code_of(text)])) is None
    assert dominant_colour(scene._replace(look=None)) is None


@pytest.mark.parametrize("wording", WORDINGS)
def test_every_wording_names_a_given_colour(wording):
    data = emoji64(**dict(FEW, limit=30), wording=wording, recolour=1.0)
    pairs = [(caption, variant.colour) for caption, variant in zip(data.captions, data.variants, strict=True)]
    assert all(colour in caption for caption, colour in pairs)
    # and no other one as that of the thing
    for caption, colour in pairs:
        if colour and wording in ("plain", "bare"):
            assert COLOUR_WORD.findall(caption.removesuffix(" on a white background")) == [colour]


@pytest.mark.parametrize("wording", COLOURFUL)
@pytest.mark.parametrize("channels", [1, 2])
def test_grey_images_have_no_colours(wording, channels):
    for text in emoji64(**dict(FEW, limit=40, styles="flat"), wording=wording, channels=channels).captions:
        assert not any(word in text for word in ("mostly", "all ", "some "))


def test_mixed_captions_are_short_plain_or_dense_a_third_each():
    data = emoji64(**FEW, wording="mixed")
    others = [emoji64(**FEW, wording=wording).captions for wording in ("dense", "short", "plain")]
    which = [[text == other[place] for other in others].index(True) for place, text in enumerate(data.captions)]
    third, deviation = len(data) / 3, (len(data) * 2 / 9) ** 0.5
    assert abs(which.count(0) - third) < 4 * deviation  # a short caption may read like a plain one
    assert which.count(2) > 0 and abs(which.count(1) + which.count(2) - 2 * third) < 4 * deviation


def test_everyday_words_belong_to_concepts_and_give_none_away():
    """No held-out concept is named by a caption of another one."""
    codes = {entry.text: code for code, entry in index().entries.items()}
    assert set(EVERYDAY) <= set(codes)
    assert not [word for word in EVERYDAY.values() if word in codes and split_of(codes[word], "") == "concept"]


# -- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"recolour": 1.5}, "fraction from 0 to 1, got 1.5"),
        ({"recolour": 0.5, "channels": 1}, "images of 1 channels have no colours: recolour=0"),
        ({"copies": 0}, "copies must be a whole number from 1 to 100, got 0"),
        ({"copies": 10**9}, "from 1 to 100, got 1000000000"),
    ],
)
def test_mistakes_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        emoji64(image_size=8, **options)
