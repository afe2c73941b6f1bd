"""emoji64: the right drawings, captions and splits, the same for ever, whatever else is selected."""

from __future__ import annotations

import hashlib
import pickle
import re
from collections import Counter
from contextlib import nullcontext

import pytest
import torch
from cascade_toys import unchecked

from imagen_pytorch.data import DataError, Emoji64, emoji64, open_source
from imagen_pytorch.data.emoji import FOLDER, SPLITS, atlas, index, split_of
from imagen_pytorch.data.emoji_captions import BACKGROUNDS, STYLES, WORDINGS, Scene, backgrounds, noun_phrase

HEART, APPLE, CAT, SKULL = "2764", "1f34e", "1f408", "1f480"
COLOURED = ("noto", "twemoji", "flat", "3d")
#: The styles of the first release: their images never change.
FIRST = (*COLOURED, "mono")
FRUIT = dict(split="all", styles="flat", groups="food-drink", image_size=8)


@pytest.fixture(autouse=True)
def checks(request):
    """Annotations are checked in tests of items, channels and sizes, and nowhere else: it takes most of the time."""
    checked = ("test_items_are_floats", "test_every_number_of_channels", "test_other_shapes")
    with nullcontext() if request.node.name.startswith(checked) else unchecked():
        yield


@pytest.fixture(scope="module")
def everything():
    """All pictures at 8 x 8 on white."""
    with unchecked():
        return emoji64("all", image_size=8)


def drawing(code, style="flat", **options):
    """One picture."""
    data = emoji64("all", style, index().entries[code].group, **options)
    return data[[key.code for key in data.keys].index(code)][0]


# -- contents ---------------------------------------------------------------------------------------------------------


def test_as_many_pictures_as_the_data_have(everything):
    assert len(everything) == len(everything.names) == 11_261 and len(index().entries) == 1907
    styles = Counter(key.style for key in everything.keys)
    assert styles == {"noto": 1645, "twemoji": 1881, "flat": 1593, "3d": 1851, "mono": 1580,
                      "blob": 1176, "emojione": 1076, "fxemoji": 459}  # fmt: skip
    drawn = Counter(Counter(key.code for key in everything.keys if key.style in FIRST).values())
    assert (drawn[5], sum(drawn.values())) == (1554, 1907)


@pytest.mark.parametrize("style", ["blob", "emojione", "fxemoji"])
def test_drawings_of_the_later_styles_are_no_copies(style):
    """The root mean square difference to the same concept in another style, colours times alpha."""
    assert len(atlas(style).flatten(1).unique(dim=0)) == len(atlas(style))
    places = {name: {code: place for place, code in enumerate(codes)} for name, codes in index().styles.items()}
    for other in set(STYLES) - {style}:
        common = [code for code in places[style] if code in places[other]]
        one, two = (atlas(name)[[places[name][code] for code in common]][:, :, ::2, ::2].float() / 255
                    for name in (style, other))  # fmt: skip
        one, two = (torch.cat([tiles[:, :3] * tiles[:, 3:], tiles[:, 3:]], 1) for tiles in (one, two))
        assert (one - two).square().mean((1, 2, 3)).sqrt().min() > 0.03


def test_groups_by_their_size():
    groups = Counter(entry.group for entry in index().entries.values())
    assert sum(groups.values()) == 1907 and len(groups) == 9
    assert {name: groups[name] for name in ("animals-nature", "food-drink", "travel-places", "activities")} == {
        "animals-nature": 160, "food-drink": 131, "travel-places": 219, "activities": 85}  # fmt: skip
    demo = ("animals-nature", "food-drink", "objects", "smileys-emotion", "travel-places", "activities")
    assert sum(groups[name] for name in demo) == 1032
    assert len(emoji64("all", COLOURED, demo, image_size=8)) == 4098


def test_the_licences_come_along():
    notice = (FOLDER / "LICENSE-emoji64.txt").read_text(encoding="utf-8")
    for file in (*(f"{style}.webp" for style in STYLES), "index.json"):
        assert re.search(rf"^{file} +\S", notice, re.MULTILINE) and (FOLDER / file).is_file()
    for words in ("Apache License 2.0", "CC-BY 4.0", "Microsoft", "Permission is hereby granted", "UNICODE LICENSE V3"):
        assert words in notice
    assert "Apache License" in (FOLDER / "LICENSE-Apache-2.0.txt").read_text()


# -- drawings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", COLOURED)
@pytest.mark.parametrize(
    ("code", "channel"), [(HEART, 0), (APPLE, 0), ("1f49a", 1), ("1f499", 2), ("1f7e2", 1), ("1f535", 2)]
)
def test_hearts_and_circles_have_their_colour_in_the_middle_and_white_around(style, code, channel):
    picture = drawing(code, style)
    middle = picture[:, 26:38, 26:38].mean((1, 2))
    others = [middle[other] for other in range(3) if other != channel]
    assert middle[channel] > max(others) + 0.2
    assert torch.allclose(picture[:, :2, :2], torch.tensor(1.0), atol=0.02)


def test_silhouettes_are_black_and_white():
    picture = drawing(HEART, "mono")
    assert torch.equal(picture[0], picture[1]) and torch.equal(picture[0], picture[2])
    assert picture.mean() > 0.4 and picture.min() == 0


def test_a_drawing_is_itself_in_every_size():
    """Bytes of the atlas at 64, their means below, interpolated above."""
    tile = atlas("flat")[next(key.place for key in emoji64(**FRUIT).keys if key.code == APPLE)].float() / 255
    over_white = tile[:3] * tile[3:] + 1 - tile[3:]
    assert (drawing(APPLE) - over_white).abs().max() <= 0.5 / 255 + 1e-6
    small = drawing(APPLE, image_size=8)
    assert (small - over_white.unflatten(1, (8, 8)).unflatten(3, (8, 8)).mean((2, 4))).abs().mean() < 0.03
    large = drawing(APPLE, image_size=96)
    assert large.shape == (3, 96, 96) and abs(large.mean() - over_white.mean()) < 0.01


def test_other_shapes_are_centred_on_the_background():
    for size, cut in (((16, 40), (..., slice(12, 28))), ((40, 16), (..., slice(12, 28), slice(None)))):
        wide = drawing(APPLE, image_size=size, background="yellow")
        assert torch.allclose(wide[cut], drawing(APPLE, image_size=16, background="yellow"))
        paper = torch.tensor(BACKGROUNDS["yellow"]) / 255
        assert torch.allclose(wide[:, 0, 0], paper) and torch.allclose(wide[:, -1, -1], paper)


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_every_background(background):
    picture = drawing(APPLE, background=background)
    assert torch.allclose(picture[:, 0, 0] * 255, torch.tensor(BACKGROUNDS[background]).float(), atol=1e-3)
    data = emoji64(**FRUIT, background=background)
    article = "an" if background == "orange" else "a"
    assert all(caption.endswith(f" on {article} {background} background") for caption in data.captions)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_every_number_of_channels(channels):
    data = emoji64(**FRUIT, channels=channels)
    picture, caption = data[0]
    rgba = emoji64(**FRUIT, channels=4)[0][0]
    assert picture.shape == (channels, 8, 8) and data.pixels.shape == (len(data), channels, 8, 8)
    assert ("background" in caption) == (channels in (1, 3))
    if channels in (2, 4):
        assert picture[-1, 0, 0] == 0 and picture[-1, 4, 4] == 1 and torch.equal(picture[-1], rgba[-1])
    colour = rgba[:3] if channels in (2, 4) else rgba[:3] * rgba[3:] + 1 - rgba[3:]
    grey = (colour * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0, keepdim=True)
    visible = (rgba[3:] > 0.1).expand(picture[:3].shape if channels > 2 else (1, 8, 8))
    ours, theirs = (picture[:1], grey) if channels < 3 else (picture[:3], colour)
    assert (ours - theirs)[visible].abs().max() < 3 / 255


def test_items_are_floats_of_the_stored_bytes():
    data = emoji64("pair", image_size=8)
    assert data.pixels.dtype == torch.uint8
    for place in (0, 200, -1):
        picture, caption = data[place]
        assert torch.equal(picture, data.pixels[place].float() / 255) and caption == data.captions[place]
    with pytest.raises(IndexError, match="there are 535 images, got index 535"):
        data[535]


# -- splits -----------------------------------------------------------------------------------------------------------


def test_sizes_of_the_splits():
    assert {split: len(emoji64(split, image_size=8)) for split in SPLITS} == {
        "train": 10_400, "pair": 535, "concept": 326, "all": 11_261}  # fmt: skip
    assert {split: len(emoji64(split, FIRST, image_size=8)) for split in SPLITS} == {
        "train": 7896, "pair": 398, "concept": 256, "all": 8550}  # fmt: skip


def test_splits_are_disjoint_and_hold_out_what_they_say(everything):
    keys = {split: set(emoji64(split, image_size=8).keys) for split in SPLITS[:3]}
    assert set.union(*keys.values()) == set(everything.keys) and sum(map(len, keys.values())) == len(everything)
    codes = {split: {key.code for key in found} for split, found in keys.items()}
    assert not codes["concept"] & (codes["train"] | codes["pair"])
    assert len(codes["pair"] & codes["train"]) / len(codes["pair"]) > 0.99


def test_a_split_depends_on_the_name_alone():
    """Adding pictures moves none: the rule, written out again."""

    def share(text):
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32

    for code, style in [(HEART, "flat"), (CAT, "noto"), *((f"{number:x}", "3d") for number in range(0x1F300, 0x1F400))]:
        held_out = "concept" if share(f"concept/{code}") < 0.03 else None
        held_out = held_out or ("pair" if share(f"pair/{code}/{style}") < 0.05 else "train")
        assert split_of(code, style) == held_out


# -- choice -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", STYLES)
def test_every_style(style):
    data = emoji64("all", style, image_size=8)
    assert {key.style for key in data.keys} == {style} and len(data) == len(index().styles[style])
    assert all(caption.startswith(STYLES[style]) for caption in emoji64("all", style, image_size=8, limit=40).captions)


@pytest.mark.parametrize("group", sorted({entry.group for entry in index().entries.values()}))
def test_every_group(group):
    data = emoji64("all", groups=[group], image_size=8)
    assert {index().entries[key.code].group for key in data.keys} == {group}


def test_several_words_in_one_string_or_a_list():
    ways = [emoji64(styles=styles, groups=groups, image_size=8).keys for styles, groups in (
        ("flat, 3d", "activities,objects"), (["flat", "3d"], ("activities", "objects")),
        (["flat", "3d", "flat"], "activities, objects"))]  # fmt: skip
    assert ways[0] == ways[1] == ways[2] and len(ways[0]) == len(set(ways[0]))


def test_a_limit_spreads_over_the_selection(everything):
    some = emoji64("all", image_size=8, limit=50)
    assert len(some) == 50 and {key.style for key in some.keys} == set(STYLES)
    assert set(some.keys) <= set(everything.keys) and len(set(some.keys)) == 50
    assert len(emoji64(**FRUIT, limit=10**6)) == len(emoji64(**FRUIT))


def test_black_silhouettes_are_never_on_black():
    assert "black" not in backgrounds("mono") and set(backgrounds("flat")) == set(BACKGROUNDS)
    assert {key.style for key in emoji64("all", groups="objects", image_size=8, background="black").keys} == {
        style for style in STYLES if style != "mono"
    }
    mixed = emoji64("all", "mono", image_size=8, background="random")
    assert set(mixed.backgrounds) == set(backgrounds("mono"))


def test_random_backgrounds_belong_to_the_picture_and_the_seed():
    data = emoji64(**FRUIT, background="random")
    assert set(data.backgrounds) == set(BACKGROUNDS)
    assert all(f" {name} background" in caption for name, caption in zip(data.backgrounds, data.captions, strict=True))
    other = emoji64(**FRUIT, background="random", seed=1)
    assert data.keys == other.keys and data.backgrounds != other.backgrounds
    few = emoji64(**FRUIT, background="random", limit=7)
    place = {key: number for number, key in enumerate(data.keys)}
    assert few.captions == [data.captions[place[key]] for key in few.keys]
    assert torch.equal(few.pixels, data.pixels[[place[key] for key in few.keys]])


def test_half_of_the_images_can_be_white():
    data, varied = (emoji64(**FRUIT, background=background) for background in ("half-white", "random"))
    white = [name == "white" for name in data.backgrounds]
    expected = 0.5 + 0.5 / len(BACKGROUNDS)
    assert abs(sum(white) / len(white) - expected) < 4 * (expected * (1 - expected) / len(white)) ** 0.5
    # the others are those of "random"
    pairs = zip(data.backgrounds, varied.backgrounds, strict=True)
    assert all(mine in ("white", other) for mine, other in pairs)


# -- captions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "phrase"),
    [
        (HEART, "a red heart"), (CAT, "a cat"), ("1f418", "an elephant"), ("1f984", "a unicorn"), ("1f347", "grapes"),
        ("1f1ef-1f1f5", "the flag of Japan"), ("1f457", "a dress"), ("1f68c", "a bus"), ("2648", "the sign Aries"),
        ("1f170", "the symbol A button (blood type)"), ("1f45f", "a running shoe"), ("1f46f", "people with bunny ears"),
        ("1f335", "a cactus"), ("1f435", "a monkey face"), ("1f4b6", "a euro banknote"),
    ],
)  # fmt: skip
def test_articles(code, phrase):
    assert noun_phrase(index().entries[code]) == phrase


def test_wordings():
    entry = index().entries[CAT]
    scene = Scene(entry, "3d", "blue", "seed")
    assert WORDINGS["plain"](scene) == "a 3d render of a cat on a blue background"
    assert WORDINGS["plain"](scene._replace(background=None)) == "a 3d render of a cat"
    assert WORDINGS["bare"](scene) == "a cat"
    varied = [WORDINGS["varied"](scene._replace(seed=f"{number}")) for number in range(400)]
    kinds = Counter(
        "plain"
        if text == WORDINGS["plain"](scene)
        else "bare"
        if text.endswith("cat")
        else "style"
        if "style" in text
        else "tags"
        for text in varied
    )
    # a half, a fifth, and the rest in two equal parts; four standard deviations
    for kind, share in (("plain", 0.5), ("bare", 0.2), ("style", 0.15), ("tags", 0.15)):
        assert abs(kinds[kind] - 400 * share) < 4 * (400 * share * (1 - share)) ** 0.5
    assert "a cat, 3d render style, blue background" in varied
    keywords = [text.split("background, ")[1].split(", ") for text in varied if "background, " in text]
    assert all(set(words) <= set(entry.tags) and len(words) == min(3, len(entry.tags)) for words in keywords)


@pytest.mark.slow
def test_all_captions_that_there_are():
    """As many different ones as the data set's description says, of at most 19 words."""
    plain = getattr(WORDINGS["plain"], "__wrapped__", WORDINGS["plain"])  # checking 84 thousand calls would take long
    every = {
        plain(Scene(index().entries[code], style, background, ""))
        for style, codes in index().styles.items()
        for background in backgrounds(style)
        for code in codes
    }
    assert len(every) == 110_890 and max(len(caption.split()) for caption in every) == 19


@pytest.mark.parametrize("wording", WORDINGS)
def test_captions_are_the_same_every_time(wording):
    first, retry, other = (emoji64(**FRUIT, wording=wording, seed=seed).captions for seed in (3, 3, 4))
    assert first == retry and (first != other) == (wording not in ("plain", "bare"))
    assert all(text == text.strip() and "  " not in text for text in first)


def test_nothing_ever_changes(everything):
    """A fingerprint of all keys and captions, so that no change of them is an accident."""
    lines = [
        f"{key.code} {key.style} {caption}"
        for key, caption in zip(everything.keys, everything.captions, strict=True)
        if key.style in FIRST
    ]
    # reference: the captions of the program that built the pack, in the order of the atlases
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest().startswith("902462260087f1be")


# -- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"split": "trian"}, ValueError, "no split 'trian'; known: train, pair, concept, all; did you mean \"train\""),
        ({"styles": "3D"}, ValueError, "no style '3D'; known: noto, twemoji, flat, 3d, mono"),
        ({"groups": ["food"]}, ValueError, "no group 'food'; known: .*food-drink"),
        (
            {"background": "grey"},
            ValueError,
            "no background 'grey'; known: white, .*random, half-white; did you mean \"gray\"",
        ),
        ({"wording": "plane"}, ValueError, "no wording 'plane'; known: plain, bare, varied"),
        ({"channels": 5}, ValueError, "no number of channels 5; known: 1, 2, 3, 4"),
        ({"image_size": 0}, ValueError, "image size"),
        ({"limit": 0}, DataError, "no image of emoji64 is left with .*limit=0"),
        ({"limit": -3}, DataError, "limit=-3"),
        ({"styles": "mono", "background": "black"}, DataError, "no image .* background='black'"),
    ],
)
def test_mistakes_are_named(options, error, words):
    with pytest.raises(error, match=words):
        Emoji64(**{"image_size": 8, **options})


def test_by_name_with_arguments():
    data = open_source("emoji64", split="pair", styles=["flat"], image_size=8, image_label="x", text_label="y")
    assert isinstance(data, Emoji64) and len(data) == len(emoji64("pair", "flat", image_size=8))
    with pytest.raises(TypeError, match='emoji64 takes no argument "splitt"; it takes: split, .*did you mean "split"'):
        open_source("emoji64", splitt="train")


def test_a_light_parcel_for_worker_processes():
    data = emoji64(**FRUIT)
    picture, caption = pickle.loads(pickle.dumps(data))[3]
    assert torch.equal(picture, data[3][0]) and caption == data[3][1]
