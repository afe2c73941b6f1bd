"""Images that hold their settings: written into every format, read by others, made again, and hostile ones refused."""

from __future__ import annotations

import io
import json
import os
import re
import struct
import zlib
from importlib.util import find_spec
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from cli_toys import write_model
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features
from PIL.PngImagePlugin import PngInfo

from imagen_pytorch import ElucidatedImagen, Imagen, ImagenTrainer, Unet3D
from imagen_pytorch.cli import main
from imagen_pytorch.cli._files import encoded
from imagen_pytorch.cli._from_image import OPTIONS, _values
from imagen_pytorch.diffusion.samplers import SAMPLERS
from imagen_pytorch.evaluation.videos import FORMATS, encoded_video
from imagen_pytorch.image_metadata import MAX_TEXT, MetadataError, metadata_texts, read_settings

STILL = (".png", ".jpg", ".webp", ".gif", *([".avif"] if features.check("avif") else []))
MOVING = tuple(suffix for suffix, kind in FORMATS.items() if kind.pillow or find_spec("av"))
MOVING = tuple(suffix for suffix in MOVING if suffix != ".avif" or features.check("avif"))
PROMPTS = {
    "plain": "a red heart",
    "scripts": "ein Herz, \u0447\u0451\u0440\u043d\u044b\u0439 \u732b \U0001f98a \u05d7\u05ea\u05d5\u05dc e\u0301",
    "quotes": 'a "red" heart: 1, 2\\, {"a": [1]}\nSteps: 3, Sampler: x, Seed: 9\n\ttabs \u2028 \x07 and 100%',
    "10 kB": "a long line, \u732b " * 625,
    "empty": "",
}
SETTINGS = {
    "prompt": "a red heart",
    "seed": 4,
    "cond_scale": [3.0, 1.0],
    "guidance": "cfg",
    "sampler": "edm",
    "steps": 2,
    "batch": {"size": 1, "index": 0, "tokens": 0},
    "size": [8, 6],
    "model": {"name": "imagen.pt", "digest": "0123456789abcdef" * 4},
    "versions": {"imagen_pytorch": "3.0.0", "torch": "2.13"},
}
MODELS: dict[str, bytes] = {}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """``imagen`` in a folder with the models of these tests."""
    monkeypatch.chdir(tmp_path)
    if not MODELS:
        write_model("imagen.pt")
        write_model("ddpm.pt", kind=Imagen)
        write_model("bare.pt", condition_on_text=False)
        small = {"dim": 8, "dim_mults": [1], "layer_attns": False, "layer_cross_attns": False, "attn_heads": 2}
        small |= {"attn_dim_head": 8, "attn_pool_text": False, "init_cross_embed": False}
        video = ElucidatedImagen(Unet3D(**small), image_sizes=(8,), text_encoder_name="builtin:words",
                                 num_sample_steps=2, video_frames=3, fps=6.0)  # fmt: skip
        for item in video.parameters():
            item.data += 0.2 * torch.randn_like(item)
        ImagenTrainer(video, use_ema=False).save("video.pt")
        MODELS.update((path.name, path.read_bytes()) for path in Path().glob("*.pt"))
    for name, contents in MODELS.items():
        Path(name).write_bytes(contents)
    return lambda *arguments: CliRunner().invoke(main, [str(item) for item in arguments])


def made(done) -> list[str]:
    assert done.exit_code == 0, done.stderr
    return done.stdout.splitlines()


# -- another program's view -------------------------------------------------------------------------------------------


def parsed(parameters: str) -> tuple[str, str, dict[str, str]]:
    """Prompt, negative prompt and pairs, read by the rules of the form: pairs count if there are at least three."""
    *lines, last = parameters.split("\n")
    pairs = re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', last)
    assert len(pairs) >= 3
    start = next((number for number, line in enumerate(lines) if line.startswith("Negative prompt: ")), len(lines))
    negative = "\n".join(lines[start:]).removeprefix("Negative prompt: ")
    values = {key: json.loads(value) if value.startswith('"') else value for key, value in pairs}
    return "\n".join(lines[:start]), negative, values


def foreign_texts(contents: bytes) -> dict[str, str]:
    """The texts of an image by keyword, without the package."""
    with Image.open(io.BytesIO(contents)) as image:
        if image.format == "PNG":
            return dict(image.text)
        if image.format == "GIF":
            parameters, _, data = image.info["comment"].decode().rpartition("\n")
            return {"parameters": parameters, "imagen": data}
        exif = image.getexif()
        comment = exif.get_ifd(0x8769)[0x9286]
    assert comment[:8] == b"UNICODE\0"
    return {"parameters": comment[8:].decode("utf-16-be"), "imagen": exif[0x010E]}


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("suffix", [*STILL, *(f"moving{suffix}" for suffix in MOVING)])
def test_every_format_keeps_every_prompt(suffix, prompt, tmp_path):
    texts = metadata_texts({**SETTINGS, "prompt": prompt, "negative_prompt": prompt})
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    path = tmp_path / f"a{suffix.removeprefix('moving')}"
    still = not suffix.startswith("moving")
    path.write_bytes(encoded(frames[0], suffix, texts) if still else encoded_video(frames, path.suffix, 8, texts))
    assert read_settings(path) == {"schema": 1, **SETTINGS, "prompt": prompt, "negative_prompt": prompt}
    if path.suffix in (".mp4", ".webm"):
        import av

        with av.open(str(path)) as file:
            found = {key.lower(): text for key, text in file.metadata.items()}
        assert {"prompt", "workflow"}.isdisjoint(found) and json.loads(found["imagen"])["seed"] == 4
        return
    found = foreign_texts(path.read_bytes())
    assert {"prompt", "workflow"}.isdisjoint(found) and json.loads(found["imagen"])["prompt"] == prompt
    before, negative, pairs = parsed(found["parameters"])
    assert (before, negative) == (prompt, prompt)
    assert pairs == {
        "Steps": "2", "Sampler": "edm", "CFG scale": "3.0,1.0", "Seed": "4", "Size": "8x6", "Model": "imagen",
        "Model hash": "0123456789", "Version": "imagen-pytorch 3.0.0",
    }  # fmt: skip


@given(st.text(max_size=20), st.text('ab,:"\\\n', max_size=9))
@settings(max_examples=60, deadline=None)
def test_any_sampler_and_model_come_back_from_the_list_of_pairs(prompt, name):
    changed = {**SETTINGS, "prompt": prompt, "sampler": name, "model": {**SETTINGS["model"], "name": f"x{name}.pt"}}
    texts = metadata_texts(changed)
    assert json.loads(texts["imagen"]) == {"schema": 1, **changed} and texts["imagen"].isascii()
    _, _, pairs = parsed("prompt\n" + texts["parameters"].rpartition("\n")[2])
    assert pairs["Sampler"].strip() == name.strip() and pairs["Model"] == f"x{name}"


def test_files_are_the_same_without_texts():
    """The pixels do not depend on the texts, and no texts leave no trace."""
    image, texts = Image.new("RGB", (8, 6), "red"), metadata_texts(SETTINGS)
    for suffix in (*STILL, ".bmp"):
        plain, told = encoded(image, suffix), encoded(image, suffix, texts)
        assert b"schema" not in plain and (b"schema" in told) == (suffix in STILL)
        assert plain == encoded(image, suffix, {})
        first, second = (np.asarray(Image.open(io.BytesIO(contents))) for contents in (plain, told))
        assert (first == second).all()


def test_settings_that_do_not_fit_are_left_out_and_said(run):
    Path("long.txt").write_text("x" * 40_000)
    done = run("sample", "--prompts", "long.txt", "-o", "a.jpg")
    assert made(done) == ["a.jpg"] and "too long for a file of JPEG and are left out" in done.stderr
    assert made(run("sample", "--prompts", "long.txt", "-o", "a.png")) == ["a.png"]
    assert len(read_settings("a.png")["prompt"]) == 40_000
    with pytest.raises(MetadataError, match="no settings"):
        read_settings("a.jpg")


# -- the same image again ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", STILL)
def test_an_image_is_made_again_bit_for_bit(run, suffix):
    words = PROMPTS["scripts"]
    made(run("sample", words, "--negative", "a \u00fc, b", "--cond-scale", "3,1", "--steps", "2,1", "-o", f"a{suffix}"))
    assert made(run("sample", "--from-png", f"a{suffix}", "-o", f"b{suffix}")) == [f"b{suffix}"]
    assert Path(f"a{suffix}").read_bytes() == Path(f"b{suffix}").read_bytes()
    shown = json.loads(run("info", f"a{suffix}", "--json").stdout)["settings"]
    assert (shown["prompt"], shown["negative_prompt"]) == (words, "a \u00fc, b")
    assert (shown["cond_scale"], shown["steps"], shown["size"]) == ([3.0, 1.0], [2, 1], [8, 8])


@pytest.mark.parametrize("suffix", [".gif", ".webp", *([".mp4"] if find_spec("av") else [])])
def test_a_video_is_made_again_bit_for_bit(run, suffix):
    made(run("sample", "a ball", "-m", "video.pt", "--frames", 2, "--fps", 3, "-o", f"a{suffix}"))
    assert made(run("sample", "--from-png", f"a{suffix}", "-o", f"b{suffix}")) == [f"b{suffix}"]
    assert Path(f"a{suffix}").read_bytes() == Path(f"b{suffix}").read_bytes()
    assert read_settings(f"a{suffix}")["frames"] == 2


def test_a_single_frame_makes_the_whole_video_again(run):
    names = made(run("sample", "a ball", "-m", "video.pt", "-o", "f-%d.png"))
    again = made(run("sample", "--from-png", names[1], "-o", "g-%d.png"))
    assert len(names) == len(again) == 3
    assert [Path(name).read_bytes() for name in names] == [Path(name).read_bytes() for name in again]


def test_an_image_of_a_batch_is_made_again_bit_for_bit(run):
    """Batches of other sizes and captions of other lengths round differently; each stage is an image of its own."""
    Path("captions.txt").write_text("a very long caption with many words\nx\na red heart\n")
    names = made(run("sample", "--prompts", "captions.txt", "-n", 2, "--seed", 4, "--batch-size", 4, "--save-stages"))
    positions = [read_settings(name)["batch"] for name in names[::2]]
    assert [(item["size"], item["index"]) for item in positions] == [(4, 0), (4, 1), (4, 2), (4, 3), (2, 0), (2, 1)]
    for name in names[2::3]:
        (again,) = made(run("sample", "--from-png", name, "-o", "again/"))
        assert Path(again).read_bytes() == Path(name).read_bytes(), name
    done = run("sample", "--from-png", names[2], "--batch-size", 3)
    assert "was made in a batch of 4: only --batch-size 4 repeats each pixel" in done.stderr


@pytest.mark.parametrize("model", ["imagen.pt", "ddpm.pt", "bare.pt"])
def test_all_samplers_and_options_are_made_again(run, model):
    caption = [] if model == "bare.pt" else ["x"]
    guided = [] if model == "bare.pt" else ["--guidance", "apg(momentum=-0.5)", "--cond-scale", "2,1"]
    names = [*SAMPLERS, "edm"] if model == "imagen.pt" else []
    calls = [
        ["--sampler", f"{first},{second}", "--steps", 3] for first, second in zip(names[::2], names[1::2], strict=False)
    ]
    calls += [[], ["--sampler", "ddpm(eta=0.5),heun", "--steps", "2,3", "--cache-interval", "2,1", *guided]]
    for number, options in enumerate(calls):
        (name,) = made(run("sample", *caption, "-m", model, *options, "-o", f"{number}.png"))
        (again,) = made(run("sample", "--from-png", name, "-o", "again/"))
        assert Path(again).read_bytes() == Path(name).read_bytes(), options


def test_options_beside_the_file_win_and_are_said(run):
    made(run("sample", "a red heart", "--seed", 4, "-o", "a.png"))
    done = run("sample", "x", "--from-png", "a.png", "--steps", 3, "--seed", 4, "-n", 2)
    assert made(done) == ["x.png", "x-1.png"]
    assert "in place of the settings in a.png: text x for a red heart, steps 3 for 2" in done.stderr
    found = [read_settings(name) for name in ("x.png", "x-1.png")]
    assert [(item["prompt"], item["steps"], item["seed"]) for item in found] == [("x", 3, 4), ("x", 3, 5)]
    assert made(run("sample", "--from-png", "a.png", "--sweep", "steps=1,2")) == ["a_red_heart-sweep.png"]
    Path("captions.txt").write_text("one\ntwo\n")
    assert made(run("sample", "--from-png", "a.png", "--prompts", "captions.txt")) == ["one.png", "two.png"]
    assert run("sample", "--from-png", "a.png", "--seed", 5, "--quiet").stderr == ""


def test_another_model_is_refused_unless_it_is_named(run):
    made(run("sample", "x", "-o", "a.png"))
    write_model("imagen.pt", image_sizes=(4, 8, 8))
    done = run("sample", "--from-png", "a.png")
    assert done.exit_code == 4 and done.stdout == "" and "Traceback" not in done.stderr
    assert 'a.png was made with the model "imagen.pt", and imagen.pt is another one' in done.stderr.splitlines()[-1]
    done = run("sample", "--from-png", "a.png", "--model", "imagen.pt")
    assert made(done) == ["x.png"] and "warning: a.png was made with the model" in done.stderr


def test_the_pretrained_model_is_found_by_its_name(run):
    made(run("sample", "a red heart", "--model", "emoji", "--steps", 1, "--stop-at-unet", 1, "-o", "a.png"))
    assert read_settings("a.png")["model"]["name"] == "emoji"
    made(run("sample", "--from-png", "a.png", "-o", "b.png"))
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


def test_metadata_can_be_switched_off(run):
    for suffix in STILL:
        made(run("sample", "a red heart", "--no-metadata", "-o", f"a{suffix}"))
        contents = Path(f"a{suffix}").read_bytes()
        assert not any(word in contents for word in (b"red", b"heart", b"imagen", b"seed", b"Steps"))


def test_other_machines_are_said(run):
    made(run("sample", "x", "-o", "a.png"))
    changed = {**read_settings("a.png"), "device": "cuda:0"}
    Path("b.png").write_bytes(encoded(Image.new("RGB", (8, 8)), ".png", metadata_texts(changed)))
    assert "b.png was made with other device: single pixels may differ" in run("sample", "--from-png", "b.png").stderr


def test_info_shows_the_settings(run):
    made(run("sample", PROMPTS["quotes"], "--seed", 7, "-o", "a.png"))
    done = run("info", "a.png")
    lines = made(done)
    assert [line.split()[0] for line in lines][:3] == ["schema", "prompt", "seed"] and "\x07" not in done.stdout
    assert "seed" in lines[2] and lines[2].endswith(" 7")
    Image.new("RGB", (8, 8)).save("plain.png")
    done = run("info", "plain.png")
    assert done.exit_code == 3 and "plain.png holds no settings of imagen sample" in done.stderr


# -- hostile files ----------------------------------------------------------------------------------------------------


def png(text: str | None = None, chunk: bytes = b"") -> bytes:
    """A PNG with a text under our keyword, or a chunk as it is."""
    info, buffer = PngInfo(), io.BytesIO()
    if text is not None:
        info.add_itxt("imagen", text)
    Image.new("RGB", (8, 6)).save(buffer, "PNG", pnginfo=info)
    contents = buffer.getvalue()
    return contents[:33] + chunk + contents[33:]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def wrong(**changes: object) -> bytes:
    return png(json.dumps({"schema": 1, **SETTINGS, **changes}))


BOMB = zlib.compress(b"x" * (MAX_TEXT * 30), 9)
#: values of which most entries of the settings take none
VALUES = [
    None,
    True,
    -1,
    1.5,
    1e400,
    float("nan"),
    "",
    "x" * 3000,
    "\ud800",
    "\x1b[2J",
    [],
    [[]],
    {},
    {"a": 1},
    10**400,
]
HOSTILE = {
    "nothing": b"",
    "text": b"a red heart",
    "plain": png(),
    "cut": png(json.dumps(SETTINGS))[:60],
    "damaged": bytes(byte ^ (index > 40) for index, byte in enumerate(png(json.dumps(SETTINGS)))),
    "not JSON": png("{"),
    "deep": png("[" * 200_000),
    "deep entry": png('{"schema": 1, "seed": ' + "[" * 900 + "]" * 900 + "}"),
    "no object": png("[1]"),
    "no schema": png("{}"),
    "schema of words": wrong(schema="1"),
    "schema of bool": wrong(schema=True),
    "schema zero": wrong(schema=0),
    "schema of the future": wrong(schema=2),
    "schema of the far future": wrong(schema=10**400),
    "digits": png('{"schema": ' + "1" * 100_000 + "}"),
    "long": png(json.dumps({"schema": 1, **SETTINGS, "prompt": "x" * MAX_TEXT})),
    "long chunk": png(chunk=chunk(b"tEXt", b"imagen\0" + b"x" * (5 * MAX_TEXT))),
    "bomb": png(chunk=chunk(b"zTXt", b"imagen\0\0" + BOMB)),
    "international bomb": png(chunk=chunk(b"iTXt", b"imagen\0\1\0\0\0" + BOMB)),
    "length": png(chunk=b"\x7f\xff\xff\xfftEXtimagen\0x"),
    "seed missing": png(json.dumps({"schema": 1, **{key: SETTINGS[key] for key in SETTINGS if key != "seed"}})),
    "index": wrong(batch={"size": 2, "index": 2, "tokens": 0}),
    "batch": wrong(batch={"size": 10**9, "index": 0, "tokens": 0}),
    "model": wrong(model={"name": 1, "digest": "x"}),
    "place": wrong(model={"name": "../../etc/passwd", "digest": "x"}),
    "address": wrong(model={"name": "http://127.0.0.1:1/x.pt", "digest": "x"}),
    "sampler": wrong(sampler="no such"),
    "sampler with code": wrong(sampler="ddpm(eta=__import__('os'))"),
    "guidance": wrong(guidance="((((("),
    "jpeg": b"\xff\xd8\xff\xe1\xff\xffExif\0\0" + bytes(range(250)) * 2,
    "webp": b"RIFF\xff\xff\xff\xffWEBPVP8X" + b"\xff" * 400,
    "gif": b"GIF89a\1\0\1\0\0\0\0!\xfe" + b"\xff" * 400,
    "mp4": b"\0\0\0\x20ftypisom" + b"\xff" * 400,
    "webm": b"\x1a\x45\xdf\xa3" + b"\xff" * 400,
    "avif": b"\0\0\0\x20ftypavif" + b"\xff" * 400,
    "huge": png()[:16] + struct.pack(">II", 2**31 - 1, 2**31 - 1) + png()[24:],
}
#: they are refused by the model, after it was opened
LATE = ("place", "address", "sampler", "guidance")


@pytest.mark.parametrize("case", [case for case in HOSTILE if not case.startswith(LATE)])
def test_hostile_files_are_one_sentence(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.png").write_bytes(HOSTILE[case])
    done = CliRunner().invoke(main, ["sample", "--from-png", "a.png"])
    assert done.exit_code in (2, 3) and done.stdout == "", done.stderr
    (line,) = done.stderr.splitlines()
    assert "a.png" in line and "Traceback" not in line and "unexpected" not in line and len(line) < 700, line
    assert not set(line) & set("\x1b\x07") and os.listdir() == ["a.png"]
    shown = CliRunner().invoke(main, ["info", "a.png"])
    assert shown.exit_code in (0, 2, 3) and "Traceback" not in shown.stderr and "unexpected" not in shown.stderr
    assert "\x1b" not in shown.stdout + shown.stderr


@pytest.mark.parametrize("entry", [*OPTIONS, "batch", "model"])
def test_every_entry_is_checked_as_its_option_is(entry):
    """A value is taken as that of the option, or refused in one sentence that names the entry."""
    command = main.get_command(click.Context(main), "sample")
    context, taken = click.Context(command), []
    for value in VALUES:
        try:
            taken.append(_values("a.png", {**SETTINGS, entry: value}, context).get(OPTIONS.get(entry, entry)))
        except MetadataError as error:
            assert str(error).startswith(f"the settings in a.png cannot be used: {entry}: ") and len(str(error)) < 600
            assert "\x1b" not in str(error)
    kinds = {"text": str, "guidance": str, "seed": int, "steps": int}
    assert len(taken) <= 7 and all(isinstance(item, kinds.get(entry, object)) for item in taken if item is not None)


@pytest.mark.parametrize("case", [case for case in HOSTILE if case.startswith(LATE)])
def test_settings_that_no_model_takes_are_one_sentence(case, run):
    Path("a.png").write_bytes(HOSTILE[case])
    done = run("sample", "--from-png", "a.png", "-o", "b.png")
    assert done.exit_code in (2, 3, 4) and done.stdout == "", done.stderr
    line = done.stderr.splitlines()[-1]
    assert "Traceback" not in line and "unexpected" not in line and len(line) < 700 and "\x1b" not in line, line
    assert not Path("b.png").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes as POSIX has them")
def test_what_is_not_a_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.png")
    Path("folder.png").mkdir()
    for name, code in (("pipe.png", 3), ("folder.png", 3), ("gone.png", 2), ("", 2)):
        done = CliRunner().invoke(main, ["sample", "--from-png", name])
        assert done.exit_code == code and done.stdout == "" and len(done.stderr.splitlines()) == 1, done.stderr
