"""From folders and tables to batches, in this process and in worker processes."""

from __future__ import annotations

import io
import json
import os
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader

from imagen_pytorch import Imagen, ImagenTrainer, Unet3D
from imagen_pytorch.data import (
    Collator,
    DataError,
    Dataset,
    collate_mixed,
    cycle,
    get_images_dataloader,
    open_source,
)
from imagen_pytorch.data.moving_digits import MovingDigits
from imagen_pytorch.text import text_encoder

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}


def encoded(colour="red", form="PNG", size=(9, 9)):
    """The bytes of a file."""
    buffer = io.BytesIO()
    Image.new("RGB", size, COLOURS[colour]).save(buffer, form)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Eight pictures with captions."""
    for number in range(2):
        for colour in COLOURS:
            (tmp_path / f"{colour}{number}.png").write_bytes(encoded(colour))
            (tmp_path / f"{colour}{number}.txt").write_text(f"a {colour} square")
    return tmp_path


def noise_jpeg():
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


# -- a folder ---------------------------------------------------------------------------------------------------------


def test_batches_of_a_folder_with_captions(folder):
    loader = get_images_dataloader(folder, batch_size=3, image_size=8, shuffle=False)
    batches = list(loader)
    assert [len(images) for images, _ in batches] == [3, 3, 2] and batches[0][0].shape == (3, 3, 8, 8)
    assert [caption for _, texts in batches for caption in texts] == Dataset(folder, 8).captions


def test_batches_of_a_folder_without_captions(folder):
    options = dict(batch_size=8, image_size=(4, 6), captions=False, channels=1)
    (images,) = get_images_dataloader(folder, shuffle=False, **options)
    assert images.shape == (8, 1, 4, 6)


def test_shuffling_is_another_order_of_the_same(folder):
    loader = get_images_dataloader(folder, batch_size=1, image_size=2)
    orders = [[texts[0] for _, texts in loader] for _ in range(3)]
    assert all(sorted(order) == sorted(orders[0]) for order in orders) and len(set(map(tuple, orders))) > 1


def test_endless_batches(folder):
    endless = get_images_dataloader(folder, batch_size=5, image_size=2, shuffle=False, cycle_dl=True)
    assert [len(next(endless)[1]) for _ in range(5)] == [5, 3, 5, 3, 5]


def test_cycling_over_nothing_says_so_instead_of_hanging():
    with pytest.raises(DataError, match="yields no batch: .* empty, or smaller than a batch with drop_last"):
        next(cycle(DataLoader([1, 2], batch_size=3, drop_last=True)))
    assert [item for item, _ in zip(cycle([1, 2]), range(5), strict=False)] == [1, 2, 1, 2, 1]


def test_a_misspelt_argument_of_the_loader(folder):
    with pytest.raises(TypeError, match="image_sizes"):
        get_images_dataloader(folder, batch_size=1, image_size=2, image_sizes=3)


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_what_workers_cannot_read_is_known_here(folder, start):
    (folder / "half.jpg").write_bytes(noise_jpeg()[:900])
    (folder / "half.txt").write_text("half a picture")
    data = Dataset(folder, 4)
    loader = DataLoader(data, batch_size=3, num_workers=2, multiprocessing_context=start)
    texts = [caption for _, captions in loader for caption in captions]
    assert len(texts) == 9 and "half a picture" not in texts
    assert [item.name for item in data.skipped] == ["half.jpg"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nobody tries the damaged picture again
        assert len(next(iter(DataLoader(data, batch_size=9)))[1]) == 9


# -- rows of a table --------------------------------------------------------------------------------------------------


ROWS = [{"image": encoded(colour), "text": f"a {colour} square"} for colour in COLOURS]


def test_rows_become_pictures_and_captions():
    images, texts = Collator(6)(ROWS)
    assert images.shape == (4, 3, 6, 6) and texts == [row["text"] for row in ROWS]
    assert torch.allclose(images[:, :, 3, 3] * 255, torch.tensor(list(COLOURS.values())).float())


@pytest.mark.parametrize("as_object", [False, True])
def test_rows_become_pictures_and_padded_states(as_object):
    encoder = text_encoder("builtin:words")
    rows = [{"image": encoded(), "text": text} for text in ("one", "one two three")]
    _, embeds = Collator(4, name=encoder if as_object else "builtin:words")(rows)
    expected, mask = encoder.encode(["one", "one two three"])
    assert torch.equal(embeds, expected) and (embeds[~mask] == 0).all() and embeds.shape == (2, 4, 128)


def test_one_word_captions_alone_need_no_padding():
    _, embeds = Collator(4, name="builtin:words")([{"image": encoded(), "text": "x"}])
    assert embeds.shape == (1, 2, 128)


@pytest.mark.parametrize(("channels", "count"), [(1, 1), (2, 2), (4, 4), ("L", 1), ("LA", 2), ("RGB", 3), ("RGBA", 4)])
def test_channels_by_number_or_mode(channels, count):
    assert Collator(4, channels=channels)(ROWS)[0].shape == (4, count, 4, 4)


def test_columns_of_any_name_in_the_order_of_old():
    rows = [{"URL": "x", "picture of it": encoded("green"), "words": "yes", "text": "no"}]
    images, texts = Collator(4, None, "words", "picture of it", None, 3)(rows)
    assert texts == ["yes"] and torch.allclose(images[0, :, 2, 2], torch.tensor([0.0, 1, 0]))


def test_of_several_captions_one_is_drawn():
    rows = [{"image": encoded(), "text": ["one", "two"]}] * 32
    assert set(Collator(2)(rows)[1]) == {"one", "two"}


BAD = {
    "a broken picture": ({"image": b"x", "text": "broken"}, "broken", "not an image"),
    "not an image": ({"image": None, "text": "nothing"}, "nothing", "the cell is empty"),
    "no such cell": ({"text": "nothing"}, "nothing", "the cell is empty"),
    "no caption": ({"image": encoded(), "text": "  "}, "  ", "no caption"),
    "no caption at all": ({"image": encoded()}, "a row", "no caption"),
    "something else": ({"image": 7, "text": "seven"}, "seven", "got int"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_are_left_out_counted_and_listed(name):
    row, called, reason = BAD[name]
    collate = Collator(4)
    with pytest.warns(UserWarning, match=f"{called} is left out: .*{reason}.* num_skipped") as caught:
        images, texts = collate([row, *ROWS, row])
    assert len(images) == len(texts) == 4 and collate.num_skipped == 2 and len(caught) == 1
    assert collate.skipped[0].name == called and reason in collate.skipped[0].reason


def test_a_batch_of_bad_rows_alone_is_none():
    collate = Collator(4)
    with pytest.warns(UserWarning):
        assert collate([{"image": b"x", "text": "x"}]) is None
    assert collate.num_skipped == 1


@pytest.mark.parametrize(("start", "workers"), [("fork", 2), ("spawn", 1)])
def test_bad_rows_in_worker_processes_are_counted_here(start, workers):
    rows = [*ROWS, {"image": b"x", "text": "bad"}] * 6
    collate = Collator(4, name="builtin:words")
    loader = DataLoader(rows, 5, num_workers=workers, collate_fn=collate, multiprocessing_context=start)
    assert [(len(images), len(embeds)) for images, embeds in loader] == [(4, 4)] * 6
    assert collate.num_skipped == 6 and [tuple(item) for item in collate.skipped] == [("bad", "not an image")]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"text_label": "txt"}, 'no column "txt"; set text_label to one of: image, text'),
        ({"image_label": "img"}, 'no column "img"; set image_label to one of: image, text'),
        ({"url_label": "URL"}, 'no column "URL"; set url_label to one of: image, text'),
    ],
)
def test_columns_that_do_not_exist(options, words):
    with pytest.raises(DataError, match=words):
        Collator(4, **options)(ROWS)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"image": 1, "a": 2}, "set text_label to the column that holds them, one of: image, a"),
        ({"text": 1, "a": 2}, "set image_label or url_label to the column that holds them, one of: text, a"),
    ],
)
def test_columns_that_nobody_named(row, words):
    with pytest.raises(DataError, match=words):
        Collator(4)([row])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"channels": 5}, "no number of channels 5; known: 1, 2, 3, 4"),
        ({"channels": "CMYK"}, "no image mode 'CMYK'; known: L, LA, RGB, RGBA"),
        ({"image_size": 0}, "image size"),
    ],
)
def test_impossible_options_of_a_collator(options, words):
    with pytest.raises(ValueError, match=words):
        Collator(**{"image_size": 4, **options})


# -- by name ----------------------------------------------------------------------------------------------------------


def test_a_folder_as_a_configuration_names_it(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    data = open_source(f"~/{folder.name}", image_size=4, text_label="text", image_label="image", url_label="URL")
    assert len(data) == 8 and Path(data.folder) == folder


def test_a_column_of_captions_as_a_configuration_names_it(folder):
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "red0.png", "TEXT": "from the table"}))
    with pytest.warns(UserWarning, match="7 of the images"):
        assert open_source(str(folder), image_size=4, text_label="TEXT").captions == ["from the table"]


def test_arguments_that_a_folder_does_not_take(folder):
    with pytest.raises(TypeError, match='no argument "image_siez"; it takes: image_size, .*did you mean "image_size"'):
        open_source(str(folder), image_siez=4)


def test_a_data_set_can_be_sent_to_another_process(folder):
    data = pickle.loads(pickle.dumps(Dataset(folder, 4)))
    assert data[0][1] == "a blue square" and os.fspath(data.folder) == str(folder)


def test_clips_and_pictures_in_one_batch():
    picture, clip = torch.rand(3, 8, 8), torch.rand(3, 4, 8, 8)
    batch = collate_mixed([(picture, "a cat"), {"images": clip, "texts": "a dog runs", "fps": 12.0}])
    assert batch["texts"] == ["a cat", "a dog runs"] and batch["fps"].tolist() == [1.0, 12.0]
    assert batch["ignore_time"].tolist() == [True, False]
    assert torch.equal(batch["images"][1], clip)
    assert all(torch.equal(batch["images"][0, :, frame], picture) for frame in range(4))
    assert "texts" not in collate_mixed([picture, clip]) and "fps" not in collate_mixed([picture, clip])
    assert collate_mixed([picture, picture])["images"].shape == (2, 3, 1, 8, 8)


def test_a_mixed_batch_trains_a_video_model():
    imagen = Imagen(Unet3D(dim=8, dim_mults=(1,), attn_heads=2, attn_dim_head=8), image_sizes=8, timesteps=2,
                    text_encoder_name="builtin:words:16")  # fmt: skip
    trainer = ImagenTrainer(imagen)
    pictures = [(torch.rand(3, 8, 8), "a cat") for _ in range(3)]
    clips = MovingDigits(num_frames=4, image_size=8, length=3)
    trainer.add_train_dataset(ConcatDataset([pictures, clips]), batch_size=6, collate_fn=collate_mixed)
    assert trainer.train_step() > 0


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([torch.rand(3, 4, 8, 8), torch.rand(3, 5, 8, 8)], r"same number of frames, got \[4, 5\]; set num_frames"),
        ([(torch.rand(3, 8, 8), "a cat"), torch.rand(3, 8, 8)], "1 of 2 items have no caption"),
    ],
)
def test_what_does_not_go_together(items, message):
    with pytest.raises(DataError, match=message):
        collate_mixed(items)
