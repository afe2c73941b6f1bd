"""``imagen sample``, ``train`` and ``demo`` with models of videos."""

from __future__ import annotations

import functools
import io
import json
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from imagen_pytorch import ElucidatedImagen, ImagenTrainer, Unet, Unet3D
from imagen_pytorch.checkpoint import load_imagen_from_checkpoint
from imagen_pytorch.cli import main
from imagen_pytorch.cli._demo_videos import VideoDemo
from imagen_pytorch.cli._files import counts_frames, prefix_number, without_number, write_series
from imagen_pytorch.cli._presets import find_config, preset_path
from imagen_pytorch.evaluation import digits

SMALL = {"dim": 8, "dim_mults": [1], "layer_attns": False, "layer_cross_attns": False, "attn_heads": 2}
SMALL |= {"attn_dim_head": 8, "attn_pool_text": False, "init_cross_embed": False}
MODELS: dict[str, bytes] = {}


def imagen(*arguments: object):
    return CliRunner().invoke(main, [str(item) for item in arguments])


def succeed(*arguments: object):
    done = imagen(*arguments)
    assert done.exit_code == 0, done.stderr
    return done


def refused(done, *words: str) -> None:
    """One line with these words and nothing on standard output."""
    line = done.stderr.splitlines()[-1]
    assert done.exit_code == 2 and done.stdout == "" and "Traceback" not in done.stderr, done.stderr
    assert all(word in line for word in words), line


def animation(path: str | bytes) -> tuple[int, tuple[int, int], int]:
    """Number of frames, size, and the sum of all durations in milliseconds."""
    total = 0
    with Image.open(io.BytesIO(path) if isinstance(path, bytes) else path) as image:
        for index in range(image.n_frames):
            image.seek(index)
            image.load()
            total += round(image.info["duration"])
        return image.n_frames, image.size, total


# -- files ----------------------------------------------------------------------------------------------------------


def test_names_of_single_frames(tmp_path):
    assert counts_frames(Path("a-%04d.png")) and counts_frames(Path("%d.png"))
    assert not counts_frames(Path("100%.png")) and not counts_frames(Path("a%d/b.png"))
    assert without_number(Path("x/frame-%04d.png")) == Path("x/frame.png")
    assert without_number(Path("%d.png")) == Path("sample.png")
    assert prefix_number(Path("x/f%d.png"), "unet1") == Path("x/funet1-%d.png")
    first = write_series([b"a", b"b"], tmp_path / "new" / "f-%03d.png")
    second = write_series([b"c", b"d"], tmp_path / "new" / "f-%03d.png")
    assert [path.name for path in first + second] == ["f-001.png", "f-002.png", "f-1-001.png", "f-1-002.png"]
    assert [path.read_bytes() for path in first + second] == [b"a", b"b", b"c", b"d"]


# -- sample ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def models(tmp_path, monkeypatch):
    """A folder with models of videos that know how long these are (imagen.pt) or do not, and one of pictures."""
    monkeypatch.chdir(tmp_path)
    if not MODELS:
        torch.manual_seed(0)
        options = {"imagen": {"video_frames": 4, "fps": 6.0}, "unknown": {}, "pictures": {}}
        for name, given in options.items():
            kind, factors = (Unet, 1) if name == "pictures" else (Unet3D, (2, 1))
            model = ElucidatedImagen(
                [kind(**SMALL), kind(**SMALL)],
                image_sizes=(4, 8),
                text_encoder_name="builtin:words",
                num_sample_steps=2,
                temporal_downsample_factor=factors,
                **given,
            )
            for item in model.parameters():
                item.data += 0.2 * torch.randn_like(item)
            ImagenTrainer(model, use_ema=False).save(f"{name}.pt")
            MODELS[name] = Path(f"{name}.pt").read_bytes()
    for name, contents in MODELS.items():
        Path(f"{name}.pt").write_bytes(contents)


def sample(*arguments: object) -> list[str]:
    return succeed("sample", *arguments, "--cond-scale", 1, "--device", "cpu").stdout.split()


def test_a_gif_with_its_stages_and_a_moving_sheet(models):
    names = sample("a red ball, 100%d", "-n", 2, "--save-stages", "--grid")
    stem = "a_red_ball_100_d"
    assert names == [f"{stem}{end}.gif" for end in ("", "-unet1", "-1", "-1-unet1", "-grid")]
    assert animation(names[0]) == (4, (8, 8), 670) and animation(names[1]) == (2, (4, 4), 670)
    frames, (width, _), total = animation(names[-1])
    assert (frames, total) == (4, 670) and width > 250


@pytest.mark.parametrize("suffix", [".webp", ".png", ".GIF"])
def test_kinds_of_animations(models, suffix):
    Path(f"x{suffix}").write_text("there is one already")
    assert sample("x", "--frames", 6, "--fps", 12, "-o", f"x{suffix}") == [f"x-1{suffix}"]
    assert animation(f"x-1{suffix}") == (6, (8, 8), 500)


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_films(models, suffix):
    av = pytest.importorskip("av")
    assert sample("x", "--frames", 2, "-o", f"new/x{suffix}") == [f"new/x{suffix}"]
    with av.open(f"new/x{suffix}") as file:
        assert file.streams.video[0].average_rate == 6 and len(list(file.decode(video=0))) == 2


def test_single_frames(models):
    names = sample("x", "-o", "out/f-%02d.png", "-n", 2, "--save-stages", "--grid", "--frames", 2)
    series = ("f-01", "f-02", "f-unet1-01", "f-1-01", "f-1-02", "f-unet1-1-01")
    assert names == [*(f"out/{name}.png" for name in series), "out/f-grid.gif"]
    assert Image.open(names[0]).size == (8, 8) and Image.open(names[2]).size == (4, 4)


def test_folders_and_standard_output(models):
    assert sample("x", "-o", "new/") == ["new/x.gif"]
    done = succeed("sample", "x", "--output", "-", "--cond-scale", 1)
    assert animation(done.stdout_bytes)[:2] == (4, (8, 8))


def test_stopping_early_keeps_the_rate_of_the_stage(models):
    (name,) = sample("x", "--stop-at-unet", 1)
    assert animation(name) == (2, (4, 4), 670)


def test_a_model_that_does_not_know_the_length_is_told(models):
    assert animation(sample("x", "--model", "unknown.pt", "--frames", 2)[0])[2] == 250
    refused(imagen("sample", "x", "--model", "unknown.pt"), "--frames N")


def test_a_rate_that_no_gif_has_becomes_a_webp(models):
    assert sample("x", "--fps", 60) == ["x.webp"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-o", "a.jpg"], [".jpg", "not a video format", ".gif", ".mp4", "frame-%04d.png"]),
        (["-o", "a-%d.mp4"], [".mp4", "not a video format"]),
        (["-o", "a.gif", "--fps", "60"], ["50 frames a second"]),
        (["--frames", "3"], ["multiple of 2", "got 3"]),
        (["--frames", "0"], ["--frames"]),
        (["--fps", "0"], ["--fps"]),
        (["--model", "pictures.pt", "--frames", "4"], ["makes images", "--frames"]),
        (["--model", "pictures.pt", "--fps", "4"], ["makes images", "--fps"]),
        (["--model", "pictures.pt", "-o", "a.mp4"], [".mp4", "not an image format"]),
    ],
)
def test_mistakes(models, arguments, words):
    refused(imagen("sample", "x", *arguments), *words)
    assert not [path for path in Path().iterdir() if path.suffix != ".pt"]


@pytest.mark.parametrize(
    "arguments", [["-o", "a.txt"], ["-o", "a.jpg", "--frames", "4"], ["-o", "a.jpg", "--fps", "4"]]
)
def test_names_that_fit_nothing_are_refused_before_a_model_is_read(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    Path("imagen.pt").write_bytes(b"no model")
    refused(imagen("sample", "x", *arguments), "video format")


# -- train ----------------------------------------------------------------------------------------------------------

DATA = {"batch_size": 4, "num_frames": 4, "fps": 6.0, "length": 12, "image_size": 8}


def write_config(*, model: dict | None = None, path: str = "imagen_config.json", **changes) -> str:
    values = {
        "type": "elucidated",
        "imagen": {
            "video": True,
            "unets": [SMALL, SMALL],
            "image_sizes": [8, 8],
            "text_encoder_name": "builtin:words",
            "num_sample_steps": 2,
            "temporal_downsample_factor": [2, 1],
            **(model or {}),
        },
        "trainer": {"lr": 1e-3},
        "dataset_name": "moving-digits",
        "dataset": DATA,
        "sample_at_every": 0,
        **changes,
    }
    Path(path).write_text(json.dumps(values))
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_config()
    return tmp_path


def train(*arguments: object):
    return succeed("train", "--steps", 1, "--cond-scale", 1, *arguments)


def test_samples_are_moving_sheets_and_the_model_knows_its_data(folder):
    done = train("--sample-every", 1)
    assert "moving-digits: 12 clips\n" in done.stderr and "clips/s" in done.stderr
    assert "wrote sample-000001.gif" in done.stderr and animation("sample-000001.gif")[::2] == (2, 670)
    train("--unet", 2, "--sample-every", 1)
    assert animation("sample-000001-unet2.gif")[::2] == (4, 670)
    model = load_imagen_from_checkpoint("imagen.pt")
    assert (model.video_frames, model.fps) == (4, 6.0)
    assert animation(sample("the digit 3 moves left")[0]) == (4, (8, 8), 670)


def test_a_model_without_captions(folder):
    write_config(model={"condition_on_text": False})
    train("--sample-every", 1)
    assert animation("sample-000001.gif")[0] == 2


def gifs(count: int, moving: bool) -> Path:
    """A folder of animations, or of pictures, with captions."""
    made = Path("films")
    made.mkdir()
    for number in range(count):
        frames = [Image.new("RGB", (8, 8), (60 * index, 20, 200)) for index in range(4)]
        more = {"save_all": True, "append_images": frames[1:], "duration": 100} if moving else {}
        frames[0].save(made / f"{number}{'.gif' if moving else '.jpg'}", **more)
        (made / f"{number}.txt").write_text("a blue square becomes pink")
    return made


def test_a_folder_of_clips_in_place_of_the_configured_data(folder):
    """The number of frames stays, the rate is that of the clips."""
    assert "films: 3 clips\n" in train("--dataset", gifs(3, moving=True)).stderr
    model = load_imagen_from_checkpoint("imagen.pt")
    assert (model.video_frames, model.fps) == (4, 10.0)


def test_pictures_train_a_model_of_videos_as_single_frames(folder):
    done = train("--data", gifs(3, moving=False), "--sample-every", 1)
    assert "films: 3 images, each trained as a clip of one frame" in done.stderr
    assert animation("sample-000001.gif")[0] == 2
    write_config(dataset={"batch_size": 2}, dataset_name="films")  # nobody says how long clips are
    train("--output", "other", "--sample-every", 1)
    assert load_imagen_from_checkpoint("other/imagen.pt").video_frames is None


def test_clips_do_not_train_a_model_of_pictures(folder):
    write_config(model={"video": False, "temporal_downsample_factor": 1})
    refused(imagen("train", "--steps", 1), "holds clips", '"video": true', "--config moving-digits")


def test_a_folder_with_nothing_in_it(folder):
    Path("empty").mkdir()
    done = imagen("train", "--steps", 1, "--data", "empty", "--quiet")
    assert done.exit_code == 3 and "empty holds no clips" in done.stderr


def test_frames_that_do_not_fit_the_model_are_refused_before_training(folder):
    write_config(dataset={**DATA, "num_frames": 3})
    refused(imagen("train", "--steps", 1, "--quiet"), "multiple of 2", "got 3")


def test_the_ready_made_configuration_for_the_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config(None, "moving-digits") == (preset_path("moving-digits"), True)
    assert find_config(None, "emoji64") == find_config(None, "./pictures") == find_config(None)
    assert find_config("emoji", "moving-digits") == (preset_path("emoji"), True)
    write_config()
    assert find_config(None, "moving-digits") == (Path("imagen_config.json"), False)


def test_the_ready_made_configuration_is_taken_with_its_steps(tmp_path, monkeypatch):
    from imagen_pytorch.cli import _presets

    monkeypatch.chdir(tmp_path)
    write_config(path="tiny.json", steps=[2, 1], sample_texts=["the digit 3 moves left"])
    monkeypatch.setattr(_presets, "preset_path", lambda name: Path("tiny.json") if "moving" in name else Path("none"))
    monkeypatch.setattr(_presets, "preset_names", lambda: ("moving-digits",))
    monkeypatch.setattr(_presets, "READY_MADE", "moving-pictures")
    done = succeed("train", "--dataset", "moving-digits", "--cond-scale", 1)
    assert "configuration tiny.json" in done.stderr and "step 2/2" in done.stderr and "12 clips" in done.stderr


def test_the_shipped_configuration_fits_its_data():
    values = json.loads(preset_path("moving-digits").read_text())
    assert values["imagen"]["video"] and values["dataset_name"] == "moving-digits"
    assert values["imagen"].get("video_frames", values["dataset"]["num_frames"]) == values["dataset"]["num_frames"]


# -- demo -----------------------------------------------------------------------------------------------------------


def quick_reader(monkeypatch) -> None:
    """A classifier of digits that has hardly learned anything."""
    quick = functools.partial(digits.train_digit_reader, frames=60, steps=5)
    monkeypatch.setattr(digits, "train_digit_reader", quick)


def test_the_demo_of_videos(folder, monkeypatch):
    quick_reader(monkeypatch)
    prompts = ["the digit 3 moves left", "a green idea"]
    config = write_config(path="tiny.json", steps=[2, 1], sample_texts=prompts)
    done = succeed("demo", "--config", config, "--output", "run", "--judge", 5, "--device", "cpu", "--cond-scale", 1)
    for name in ("stage1-before", "stage1-after", "stage2-before", "stage2-after", "real"):
        frames, (width, _), total = animation(f"run/{name}.gif")
        assert (frames, total) == ((2 if "stage1" in name else 4), 670) and width > 200, name
        assert f"run/{name}.gif" in done.stderr
    with Image.open("run/loss.png") as curve:
        assert done.stdout == "run/stage2-after.gif\n" and curve.width > 100
    if find_spec("av"):
        assert Path("run/stage2-after.mp4").stat().st_size and "the same as a film" in done.stderr
    assert sorted(path.name for path in Path("run/samples").iterdir()) == [
        ".imagen-outputs",
        "a_green_idea.gif",
        "the_digit_3_moves_left.gif",
    ]
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert metrics["training_clips"] == 12 and metrics["motion"]["clips"] == 5
    assert 0 <= metrics["motion"]["generated"] <= 1 and metrics["motion"]["chance"] == 0.25
    assert f"{100 * metrics['motion']['real']:.1f} %" in done.stderr and "--config tiny.json" in done.stderr
    judged = metrics["digits"]
    assert (
        judged["clips"] == 5 and 0 <= judged["every_frame"]["real"]["value"] <= judged["most_frames"]["real"]["value"]
    )
    lines = [line for line in done.stderr.splitlines() if "its digit" in line or "every frame" in line]
    assert len(lines) == 2 and f"{100 * judged['chance']:.1f} %" in lines[0]


def test_the_demo_writes_a_film_where_it_can(tmp_path, monkeypatch):
    demo = SimpleNamespace(folder=tmp_path, imagen=SimpleNamespace(unets=[1, 2]))
    film = VideoDemo.film.fget
    monkeypatch.setattr("imagen_pytorch.cli._demo_videos.find_spec", lambda _: "there")
    assert film(demo) == tmp_path / "stage2-after.mp4"
    monkeypatch.setattr("imagen_pytorch.cli._demo_videos.find_spec", lambda _: None)
    assert film(demo) is None


# -- eval -----------------------------------------------------------------------------------------------------------


def test_motion_and_digits_of_a_model_of_videos(folder, monkeypatch):
    quick_reader(monkeypatch)
    train("--unet", "all")
    done = succeed("eval", "imagen.pt", "--limit", 6, "--cond-scale", 1, "--seed", 3, "-o", "judged")
    assert done.stdout.split() == ["judged/eval.json", "judged/eval.png"]
    found = json.loads(Path("judged/eval.json").read_text())
    assert (found["data"]["name"], found["data"]["split"], found["seeds"]) == ("moving-digits", "test", [3, 8])
    motion, judged = found["figures"]["motion"], found["figures"]["digits"]
    assert motion["clips"] == judged["clips"] == 6 and motion["low"] <= motion["generated"] <= motion["high"]
    assert "moves where its caption says" in done.stderr and "every frame shows it" in done.stderr
    width, height = Image.open("judged/eval.png").size
    assert width > 4 * 8 * 2 * 2 and height > 6 * 8 * 2
    first = succeed("eval", "imagen.pt", "--limit", 4, "--cond-scale", 1, "--stop-at-unet", 1, "--split", "train")
    found = json.loads(Path("eval.json").read_text())
    assert found["data"]["split"] == "train" and found["figures"]["motion"]["clips"] == 4 and "train" in first.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "emoji64"], ["makes videos", "eval also videos of moving-digits"]),
        (["--metrics", "kid"], ["--metrics kid", "motion"]),
        (["--extractor", "pixels"], ["--extractor pixels", "digits"]),
    ],
)
def test_what_cannot_be_judged_of_videos(models, arguments, words):
    data = [] if "--data" in arguments else ["--data", "moving-digits"]
    refused(imagen("eval", "imagen.pt", *arguments, *data), *words)
    assert not list(Path().glob("eval*"))


def test_the_demo_of_a_pretrained_models_name_begins_with_a_sheet_of_it(tmp_path):
    words = ["demo", "--config", "moving-digits", "--steps", "1", "--judge", "0", "--output", str(tmp_path / "d")]
    done = CliRunner().invoke(main, [*words, "--device", "cpu"])
    assert done.exit_code == 0 and (tmp_path / "d/pretrained.gif").is_file(), done.stderr
    assert done.stderr.index('the pretrained model "moving-digits" draws') < done.stderr.index("before training")
