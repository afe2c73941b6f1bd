"""Averages of the weights whose length is chosen after the training: the mathematics, the snapshots, the export."""

from __future__ import annotations

import copy
import os

import numpy as np
import pytest
import torch
from ema_pytorch import PostHocEMA
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import pictures, small_imagen
from train_toys import SMALL, enter, imagen, refused, succeed, write_config

from imagen_pytorch import ImagenTrainer, load_imagen_from_checkpoint
from imagen_pytorch.checkpoint import CheckpointError, export_model, read_checkpoint, write_checkpoint
from imagen_pytorch.training.posthoc import WIDEST, PowerAverages, Profile, combine, exponent_of, products
from imagen_pytorch.training.snapshots import PostHoc, Snapshots, posthoc_options, snapshots_beside

# -- profiles ---------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(width=st.floats(0.002, 0.288))
def test_the_width_is_the_standard_deviation_of_the_profile(width):
    """Of t with density (g + 1) t^g on [0, 1]: sqrt((g + 1) / ((g + 2)^2 (g + 3)))."""
    exponent = exponent_of(width)
    mean, square = ((exponent + 1) / (exponent + 1 + power) for power in (1, 2))
    assert width == pytest.approx((square - mean**2) ** 0.5, rel=1e-6)
    assert width == pytest.approx(((exponent + 1) / ((exponent + 2) ** 2 * (exponent + 3))) ** 0.5, rel=1e-9)


@pytest.mark.parametrize("width", [0, -0.1, WIDEST, 1, float("nan")])
def test_widths_that_no_average_has_are_refused(width):
    with pytest.raises(ValueError, match=r"must lie between 0 and 0\.2887"):
        exponent_of(width)


@settings(max_examples=25, deadline=None)
@given(a=st.floats(0, 30), b=st.floats(0, 30), end=st.floats(0.05, 1))
def test_inner_products_are_the_integrals(a, b, end):
    points, weights = np.polynomial.legendre.leggauss(60)
    u = (points + 1) / 2
    t, step = end * u**4, end * 4 * u**3 * weights / 2  # smooth at 0 for every exponent
    integral = (step * (a + 1) * t**a / end ** (a + 1) * (b + 1) * t**b).sum()
    assert products([Profile(a, end)], [Profile(b, 1.0)]).item() == pytest.approx(integral, rel=1e-8)


def profiles(count, widths):
    return [Profile(exponent_of(width), (index + 1) / count) for width in widths for index in range(count)]


@pytest.mark.parametrize(
    ("count", "tracked", "errors"),
    [
        (16, (0.05, 0.28), (1.1, 0.9, 1.2)),
        (32, (0.05, 0.28), (0.27, 0.23, 0.51)),
        (32, (0.05, 0.10), (0.09, 0.23, 3.4)),
        (64, (0.05, 0.28), (0.07, 0.06, 0.22)),
    ],
)
def test_reconstructed_profiles_are_as_near_as_published_figures(count, tracked, errors):
    known = profiles(count, tracked)
    found = [100 * combine(known, Profile(exponent_of(width), 1.0)).error for width in (0.075, 0.15, 0.25)]
    assert found == pytest.approx(errors, rel=0.1)


@pytest.mark.parametrize("count", [16, 32, 64])
@pytest.mark.parametrize("width", [0.05, 0.28])
def test_a_tracked_profile_is_reproduced(count, width):
    known = profiles(count, (0.05, 0.28))
    weights = np.array(combine(known, Profile(exponent_of(width), 1.0)).weights)
    weights[known.index(Profile(exponent_of(width), 1.0))] -= 1
    norm = [Profile(exponent_of(width), 1.0)]
    assert abs(weights @ products(known, known) @ weights / products(norm, norm).item()) ** 0.5 < 1e-12


# -- averages of weights ----------------------------------------------------------------------------------------------


def walk(steps, *watchers, net, seed=0):
    """Random weights after every update; returns all of them."""
    generator, seen = torch.Generator().manual_seed(seed), []
    for _ in range(steps):
        with torch.no_grad():
            for item in net.parameters():
                item += 0.1 * torch.randn(item.shape, generator=generator, dtype=item.dtype)
        seen.append({name: item.clone() for name, item in net.state_dict().items()})
        for watcher in watchers:
            watcher()
    return seen


def test_the_average_is_the_weighted_sum_of_all_weights():
    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).double()
    averages = PowerAverages(net, (0.05, 0.15, 0.28))
    seen = walk(40, averages.update, net=net)
    for width, found in zip(averages.widths, averages.tensors, strict=True):
        power = exponent_of(width) + 1
        shares = [((index + 1) / 40) ** power - (index / 40) ** power for index in range(40)]
        for name, item in found.items():
            if item.is_floating_point():
                expected = sum(share * weights[name] for share, weights in zip(shares, seen, strict=True))
                torch.testing.assert_close(item, expected, rtol=1e-12, atol=1e-12)
            else:
                assert torch.equal(item, seen[-1][name])


def test_ema_pytorch_makes_the_same_averages(tmp_path):
    """It counts the first weights twice, so its average after n updates has the factors of n + 1."""
    net = torch.nn.Linear(4, 3)
    peer = PostHocEMA(net, sigma_rels=(0.05, 0.28), update_every=1, checkpoint_every_num_steps=10,
                      checkpoint_folder=str(tmp_path), checkpoint_dtype=torch.float32)  # fmt: skip
    averages, snapshots = PowerAverages(net, (0.05, 0.28)), {}

    def watch():
        averages.update()
        if averages.count == 1:
            averages.update()
        if (averages.count - 1) % 10 == 0:
            snapshots[averages.count - 1] = copy.deepcopy(averages.tensors)

    walk(160, peer.update, watch, net=net)
    for own, other in zip(averages.tensors, peer.ema_models, strict=True):
        for name, item in own.items():
            torch.testing.assert_close(item, other.ema_model.state_dict()[name], rtol=1e-5, atol=1e-6)
    known = [Profile(exponent, count) for count in snapshots for exponent in averages.exponents]
    tracked = [each for both in snapshots.values() for each in both]
    for width in (0.05, 0.075, 0.15, 0.25, 0.28):
        expected = peer.synthesize_ema_model(sigma_rel=width).ema_model.state_dict()
        factors = combine(known, Profile(exponent_of(width), 160)).weights
        for name, item in expected.items():
            found = sum(factor * each[name].double() for factor, each in zip(factors, tracked, strict=True))
            torch.testing.assert_close(found.float(), item, rtol=1e-5, atol=1e-5)


# -- in a training ----------------------------------------------------------------------------------------------------


def new(folder=None, posthoc=True, sizes=(8,), **options):
    torch.manual_seed(0)
    if folder is not None and posthoc:
        posthoc = {"folder": folder, **(posthoc if isinstance(posthoc, dict) else {})}
    imagen = small_imagen(sizes, condition_on_text=False)
    return ImagenTrainer(imagen, **{"lr": 1e-2, "verbose": False, "seed": 1, "posthoc_ema": posthoc, **options})


def step(made, count=1, number=1):
    for _ in range(count):
        made(pictures(2), unet_number=number)
        made.update(number)


def tensors(made):
    return [
        item for unet_trainer in made.unet_trainers for each in unet_trainer.posthoc.tensors for item in each.values()
    ]


def same(one, other):
    return len(one) == len(other) > 0 and all(map(torch.equal, one, other))


def test_a_resumed_run_has_the_averages_and_snapshots_of_the_uninterrupted_one(tmp_path):
    options = {"every": 2, "dtype": "float32"}
    whole = new(tmp_path / "one", options)
    step(whole, 3)
    whole.save(tmp_path / "a.pt")
    step(whole, 3)
    other = new(tmp_path / "other", options)
    other.load(tmp_path / "a.pt")
    assert other.resume_notes == [] and other.unet_trainers[0].posthoc.count == 3
    step(other, 3)
    assert same(tensors(whole), tensors(other))
    for made in (whole, other):
        made.wait_for_saves()
    assert sorted(os.listdir(tmp_path / "one")) == [f"unet1.{count:08d}.pt" for count in (2, 4, 6)]
    for name in os.listdir(tmp_path / "other"):
        pair = [read_checkpoint(tmp_path / folder / name)["averages"] for folder in ("one", "other")]
        assert all(same(list(mine.values()), list(theirs.values())) for mine, theirs in zip(*pair, strict=True))


def test_averages_are_copied_with_the_trainer_and_put_back_after_a_checkpoint_that_does_not_fit(tmp_path):
    made = new(tmp_path / "s", {"every": 1})
    step(made, 2)
    before = [item.clone() for item in tensors(made)]
    twin = copy.deepcopy(made)
    step(twin, 1)
    made.wait_for_saves()
    assert same(before, tensors(made)) and not same(before, tensors(twin)) and twin.unet_trainers[0].posthoc.count == 3
    assert len(os.listdir(tmp_path / "s")) == 2  # a copy writes no snapshots
    made.save(tmp_path / "a.pt")
    contents = read_checkpoint(tmp_path / "a.pt")
    for change in ({"count": -1}, {"widths": [0.05]}, {"widths": [0.05, 0.4]}, {"averages": [3, 4]}, 7):
        entry = {**contents["posthoc0"], **change} if isinstance(change, dict) else change
        write_checkpoint({**contents, "posthoc0": entry}, tmp_path / "b.pt")
        with pytest.raises(CheckpointError, match="posthoc0"):
            made.load(tmp_path / "b.pt")
    averages = [dict(list(each.items())[:-1]) for each in contents["posthoc0"]["averages"]]
    write_checkpoint({**contents, "posthoc0": {**contents["posthoc0"], "averages": averages}}, tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match="posthoc0 has averages of other names or shapes"):
        made.load(tmp_path / "b.pt")
    assert same(before, tensors(made)) and made.unet_trainers[0].posthoc.count == 2


def test_what_begins_or_ends_is_said(tmp_path):
    plain, tracked = new(posthoc=False), new(tmp_path / "s")
    for made in (plain, tracked):
        step(made, 2)
        made.save(tmp_path / f"{made is tracked}.pt")
    tracked.load(tmp_path / "False.pt")
    assert tracked.resume_notes[-1].startswith("post-hoc averages of U-Net 1 begin after update 2: the checkpoint has")
    assert tracked.unet_trainers[0].posthoc.count == 0
    plain.load(tmp_path / "True.pt")
    assert plain.resume_notes == ["post-hoc averages of U-Net 1 end: the checkpoint has them, posthoc_ema is off"]


def snapshot(folder, count, every=None, checked=None):
    """Those that there are after one more, if it is due."""
    averages = PowerAverages(torch.nn.Linear(1, 1))
    averages.update()
    averages.count = count
    snapshots = Snapshots(PostHoc(str(folder), every=every))
    if snapshots.is_due(averages):
        newest = max(snapshots.counts(1), default=0)
        snapshots.write(1, snapshots.contents(averages), newest if checked is None else checked)
    return snapshots.counts(1)


def test_there_are_32_to_64_snapshots_whatever_the_length(tmp_path):
    snapshots = Snapshots(PostHoc(str(tmp_path)))
    assert [snapshots.period(count) for count in (1, 1024, 1025, 2048, 2049, 10**6)] == [16, 16, 32, 32, 64, 16384]
    for count in (16, 1008, 1024):
        found = snapshot(tmp_path, count)
    assert found == [16, 1008, 1024]
    assert snapshot(tmp_path, 1040) == found and snapshot(tmp_path, 1056) == [1024, 1056]
    for every in (1, 100):
        fixed = Snapshots(PostHoc(str(tmp_path), every=every))
        assert [fixed.period(count) for count in (1, 10**6)] == [every, every]


def test_snapshots_of_a_run_that_was_left_are_replaced(tmp_path):
    for count in (10, 20, 30, 40):
        snapshot(tmp_path, count, 10)
    assert snapshot(tmp_path, 36, 12, checked=25) == [10, 20, 36, 40]


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ("yes", TypeError, "posthoc_ema must be True, False or options by name, got 'yes'"),
        ({"width": 0.1}, TypeError, 'posthoc_ema has no option "width"; did you mean "widths"'),
        ({"widths": [0.1]}, ValueError, "two or more different numbers"),
        ({"widths": [0.1, 0.1]}, ValueError, "two or more different numbers"),
        ({"widths": [0.1, 0.3]}, ValueError, "posthoc_ema: widths must lie in"),
        ({"every": 0}, ValueError, "posthoc_ema: every must be at least 1"),
        ({"dtype": "int8"}, ValueError, "dtype must be one of float16, float32, got 'int8'"),
    ],
)
def test_impossible_options_are_refused(given, error, words):
    with pytest.raises(error, match=words):
        posthoc_options(given, "folder")


def test_snapshots_need_a_folder_and_whole_weights():
    with pytest.raises(ValueError, match="posthoc_ema needs a folder for its snapshots: give the trainer"):
        new()
    with pytest.raises(ValueError, match='posthoc_ema does not work with strategy="fsdp2"'):
        posthoc_options(True, "folder", sharded=True)
    assert posthoc_options(False, None) is None and posthoc_options(True, "a/").folder == "a/posthoc"


@pytest.mark.parametrize(
    ("checkpoint", "folder"),
    [("imagen.pt", "imagen.posthoc"), ("runs/a.b/imagen.previous.pt", "runs/a.b/imagen.posthoc"),
     ("s3://x/run/checkpoint.12.pt", "s3://x/run/posthoc"), ("a/model", "a/model.posthoc"), (".x", ".x.posthoc")],
)  # fmt: skip
def test_where_snapshots_are_looked_for(checkpoint, folder):
    assert snapshots_beside(checkpoint) == folder


# -- the model that is made of them -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A checkpoint in a folder of them, after 6 and 0 updates of two U-Nets, and the weights after each update."""
    folder = tmp_path_factory.mktemp("run")
    made = new(posthoc={"every": 1, "dtype": "float32"}, sizes=(8, 16), checkpoint_path=folder, checkpoint_every=6)
    seen = []
    for _ in range(6):
        step(made)
        seen.append({name: item.clone() for name, item in made.imagen.unets[0].state_dict().items()})
    made.wait_for_saves()
    return folder / "checkpoint.6.pt", seen, made


@pytest.mark.filterwarnings("ignore:U-Net 1. the average deviates")  # there are few snapshots
@pytest.mark.parametrize("width", [0.15, pytest.param(0.28, marks=pytest.mark.slow)])
def test_the_exported_model_has_the_average_of_the_width(run, tmp_path, width):
    path, seen, made = run
    found = export_model(path, tmp_path / "a.pt", half=False, ema_width=width)
    weights = load_imagen_from_checkpoint(tmp_path / "a.pt").unets[0].state_dict()
    power = exponent_of(width) + 1
    shares = [((index + 1) / 6) ** power - (index / 6) ** power for index in range(6)]
    spread = max(float((seen[0][name] - seen[-1][name]).abs().max()) for name in weights)
    for name, item in weights.items():
        expected = sum(share * each[name] for share, each in zip(shares, seen, strict=True))
        tolerance = 1e-5 if width in (0.05, 0.28) else 0.1 * spread
        torch.testing.assert_close(item, expected, rtol=0, atol=tolerance)
    assert list(found) == [1] and found[1].count == 5 and found[1].combination.error < 0.1
    other = made.imagen.unets[1].state_dict()
    exported = load_imagen_from_checkpoint(tmp_path / "a.pt").unets[1].state_dict()
    assert all(torch.equal(exported[name], item) for name, item in other.items())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:U-Net 1. the average deviates by 16%")
def test_an_export_without_snapshots_is_said_and_a_damaged_one_is_refused(run, tmp_path):
    path, _, _ = run
    with pytest.warns(UserWarning, match=r"deviates by \d+% .* there are 0 snapshots in .*none, which does not exist"):
        export_model(path, tmp_path / "a.pt", ema_width=0.15, snapshots=tmp_path / "none")
    folder = tmp_path / "posthoc"
    folder.mkdir()
    for count in (3, 4):
        (folder / f"unet1.{count:08d}.pt").write_bytes(b"PK nonsense")
    with pytest.raises(CheckpointError, match=r"unet1\.00000003\.pt"):
        export_model(path, tmp_path / "b.pt", ema_width=0.15, snapshots=folder)
    for change, words in (({"widths": [0.05, 0.1]}, "not a snapshot of this run"), ({"averages": [{}, {}]}, "model")):
        contents = read_checkpoint(path.parent / "posthoc" / "unet1.00000003.pt")
        write_checkpoint({**contents, **change}, folder / "unet1.00000003.pt")
        with pytest.raises(CheckpointError, match=words):
            export_model(path, tmp_path / "b.pt", ema_width=0.15, snapshots=folder)
    made = new(posthoc=False)
    step(made)
    made.save(tmp_path / "plain.pt")
    with pytest.raises(ValueError, match="holds no post-hoc averages: they are tracked with posthoc_ema=True"):
        export_model(tmp_path / "plain.pt", tmp_path / "b.pt", ema_width=0.15)


def test_the_command_line_tracks_and_exports(tmp_path, monkeypatch):
    enter(tmp_path, monkeypatch)
    write_config(model=SMALL, trainer={"lr": 1e-3, "posthoc_ema": {"every": 1}})
    succeed("train", "--steps", 5, "-q")
    assert len(os.listdir("imagen.posthoc")) == 5
    done = succeed("export", "--ema-width", "0.2", "-o", "a.pt")
    assert done.stdout == "a.pt\n" and "U-Net 1: average of relative width 0.2 from 4 snapshots" in done.stderr
    refused(imagen("export", "--ema-width", "0.5", "-o", "b.pt"), 2, "--ema-width")
    refused(imagen("export", "--ema-width", "0.1", "--no-load-ema", "-o", "b.pt"), 2, "contradict")
