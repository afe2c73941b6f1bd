"""The entries of ``dataset`` in a configuration: each has the type that the loader or the source takes, or is named."""

from __future__ import annotations

import pytest
from PIL import Image

from imagen_pytorch.configs import TrainingConfig, dataset_model
from imagen_pytorch.data import open_source
from imagen_pytorch.signatures import ConfigError, parse

NAMES = {"a folder": None, "emoji64": "emoji64", "moving-digits": "moving-digits"}
OPTIONS = [(name, key) for name in NAMES for key in dataset_model(NAMES[name]).model_fields]
VALUES = [
    "x",
    "2",
    "no",
    1.5,
    7,
    True,
    None,
    {},
    {"a": 1},
    [],
    ["x"],
    [[1]],
    [1.5],
    float("nan"),
    float("inf"),
    b"x",
    object(),
]
#: what only worker processes have, and a value of each
OF_WORKERS = {"timeout": 5, "persistent_workers": True, "prefetch_factor": 2, "multiprocessing_context": "fork"}
OBJECTS = {"sampler", "batch_sampler", "collate_fn", "worker_init_fn", "generator", "fs"}


def config(name, **dataset):
    model = {"unets": [{"dim": 8}], "image_sizes": [16]}
    name = "some/where" if name == "a folder" else name
    return parse(TrainingConfig, {"imagen": model, "dataset_name": name, "dataset": dataset})


def may_be(annotation, value):
    """Whether the text of an annotation names the type of a value."""
    text = str(annotation)
    if "Mapping" in text:
        return value is None or isinstance(value, dict)
    if isinstance(value, list):
        inner = all(type(item).__name__ in text or (type(item) is int and "float" in text) for item in value)
        return ("Sequence" in text or "tuple" in text) and inner
    if isinstance(value, float):
        return "float" in text and abs(value) < float("inf")
    names = {"int": ("int", "float"), "NoneType": ("None", "Optional"), "dict": ("Mapping",)}
    return any(name in text for name in names.get(type(value).__name__, (type(value).__name__,)))


@pytest.mark.parametrize(("name", "key"), OPTIONS)
def test_every_option_with_values_of_every_kind(name, key):
    annotation = dataset_model(NAMES[name]).model_fields[key].annotation
    others = {"num_workers": 1} if key in OF_WORKERS else {}
    for value in VALUES:
        try:
            taken = config(name, **others, **{key: value})
        except ConfigError as error:
            assert str(error).startswith(f"dataset.{key}: ") and "\n" not in str(error)
            fits = key not in OBJECTS and may_be(annotation, value)
            assert not fits or key in ("image_size", "multiprocessing_context", "batch_size")
        else:
            assert key not in OBJECTS and may_be(annotation, value) and taken.dataset == {**others, key: value}


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        ({"shuffle": "no"}, "dataset.shuffle: input should be a valid boolean, got 'no'"),
        ({"num_workers": "2"}, "dataset.num_workers: input should be a valid integer, got '2'"),
        ({"batch_size": "4"}, "dataset.batch_size: input should be a valid integer, got '4'"),
        ({"batch_size": None}, "dataset.batch_size: input should be a valid integer, got None"),
        ({"collate_fn": "x"}, "dataset.collate_fn: an object of Python, which no configuration can hold; leave it out"),
        ({"fs": "x"}, "dataset.fs: an object of Python, which no configuration can hold; leave it out"),
        ({"fs_kwargs": "x"}, "dataset.fs_kwargs: input should be a valid dictionary, got 'x'"),
        ({"suffle": True}, 'dataset: unknown key "suffle"; did you mean "shuffle"?'),
    ],
)
def test_sentences(dataset, words):
    with pytest.raises(ConfigError) as caught:
        config("a folder", **dataset)
    assert str(caught.value) == words


@pytest.mark.parametrize("key", OF_WORKERS)
def test_what_only_worker_processes_have_is_refused_without_them(key):
    """Torch tells it when a loader is made, or not before the first batch, and in words about its classes."""
    value = OF_WORKERS[key]
    for others in ({}, {"num_workers": 0}):
        with pytest.raises(ConfigError, match=f"^dataset.{key}: it needs worker processes: set num_workers to 1 or"):
            config("a folder", **others, **{key: value})
    assert config("a folder", num_workers=2, **{key: value}).dataset[key] == value


def test_a_source_that_is_known_is_asked_alone():
    assert config("emoji64", styles=["flat"]).dataset == {"styles": ["flat"]}
    with pytest.raises(ConfigError, match='dataset: unknown key "styles"'):
        config("moving-digits", styles=["flat"])
    with pytest.raises(ConfigError, match='dataset: unknown key "fs_kwargs"'):
        config("emoji64", fs_kwargs={})


NUMBERS = [(name, key) for name, key in OPTIONS if key not in OBJECTS and key not in ("seed", "fs_kwargs")]


@pytest.mark.parametrize(("name", "key"), NUMBERS)
def test_impossible_numbers_are_named_in_the_configuration_or_on_opening(name, key, tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    for number in (-1, 10**9, -(10**30)):
        check_number(name, key, number, tmp_path)


def check_number(name, key, number, tmp_path):
    large = {"limit", "length", "num_frames", "fps", "frame_stride", "num_digits", "distractors", "speed", "digits",
             "batch_size", "timeout", "fetch_timeout"}  # fmt: skip
    if number > 0 and key in large:
        return  # a matter of time and memory
    try:
        _, arguments = config(name, **{key: number}).split_dataset_arguments()
        place = str(tmp_path) if name == "a folder" else name
        arguments = {"image_size": 16, **arguments}
        if name == "a folder" and key in ("fps", "frame_stride"):
            arguments["num_frames"] = 1
        open_source(place, **arguments)
    except (ValueError, TypeError) as error:  # a local folder takes no argument of the hub
        assert key in str(error) or (key == "digits" and "no digit" in str(error))
    else:
        raise AssertionError(f"{key}={number} was taken")
