"""``imagen ui``: the models, runs and files of the page, made and read as by the other commands."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import webbrowser
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ..image_metadata import read_settings
from ..ui.form import Form
from ._enlarging import begin, sizes_of
from ._errors import format_error, is_expected, say
from ._files import check_place
from ._given import read_image
from ._metrics import MetricsLog
from ._models import CHECKPOINT, files_below, find_model
from ._process import this_process
from ._prompts import Prompt
from ._request import Request, check_request
from ._sampling import results
from ._session import Model, open_model, write

_METRICS = re.compile(r"metrics\.jsonl")
#: options of `imagen sample`, and entries of the settings in an image, by the fields of the form
_OPTIONS = {"negative": "negative", "seed": "seed", "steps": "steps", "sampler": "sampler", "guidance": "cond_scale"}
_ENTRIES = {**_OPTIONS, "prompt": "prompt", "negative": "negative_prompt"}


class LocalStudio:
    """The models and runs below a folder, and the folder of new images.

    Args:
        folder: where models and runs are looked for.
        output: where images are written.
        device: that makes them.
    """

    def __init__(self, folder: str, output: str, device: str) -> None:
        from ..diffusion.samplers import SAMPLERS
        from ..pretrained import pretrained_names

        self.folder, self.output, self.device = folder, Path(output), device
        self.models = (*pretrained_names(), *self._newest_first(CHECKPOINT))
        self.samplers = SAMPLERS.names()
        self._opened: tuple[Any, Model] | None = None

    def _newest_first(self, name: re.Pattern[str]) -> list[str]:
        found = files_below(self.folder, name)
        return sorted(found, key=found.__getitem__, reverse=True)

    # -- images -------------------------------------------------------------------------------------------------------

    def make(self, form: Form, callback: Callable[..., Any]) -> tuple[list[tuple[Path, str]], str]:
        """Make images: return their files, each with a caption, and the choices of the model in words."""
        process, request = this_process(), self._request(form)
        prompts = [] if request.text is None else [Prompt(request.text, {})]
        check_request(request, process, prompts)
        model = self._model(request)
        if form.task == "enlarge":
            size = read_image(form.image, "init")[0].size[::-1]
            request = replace(request, start_at_unet=begin(sizes_of(model), size, form.image, "crop"))
        (session,) = model.sessions(request, prompts)
        arguments = {**session.arguments, **session.outputs.arguments(), "callback": callback}
        files: list[tuple[Path, str]] = []
        for item in results(session.imagen, session.wanted(), request.batch_size, arguments):
            files += [(path, f"seed {item.wanted.seed}") for path in write(session, item, process)]
        seed = next(session.wanted()).seed
        return files, f"{form.model}: {session.words}, seed {seed}. Written to the folder {self.output}."

    def _request(self, form: Form) -> Request:
        """Return the options of `imagen sample` that do the same, checked as there."""
        from .sample import sample

        given = {name: getattr(form, field).strip() for field, name in _OPTIONS.items()}
        given |= {"model": form.model, "num-images": f"{form.count:g}", "output": f"{self.output}/"}
        given |= {"device": self.device} | ({} if form.image is None else _given(form))
        words = [f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value != ""]
        params = sample.make_context("imagen sample", [*words, "--quiet", "--", *filter(None, [form.prompt])]).params
        return Request(**{name: value for name, value in params.items() if name != "no_load_ema"})

    def _model(self, request: Request) -> Model:
        """Return the model of a request, read anew if it is another one or its file has changed."""
        key = find_model(request.model), os.stat(find_model(request.model)).st_mtime_ns
        if self._opened is None or self._opened[0] != key:
            self._opened = None  # room for the next one
            self._opened = key, open_model(request, this_process())
        return self._opened[1]

    def settings(self, path: str) -> Mapping[str, Any]:
        """Return the fields of the form as the settings in an image state them; no model if it is not in the list."""
        found = read_settings(path)
        fields = {field: _text(found.get(entry)) for field, entry in _ENTRIES.items()}
        model = found.get("model")
        name = model.get("name") if isinstance(model, dict) else None
        alike = [item for item in self.models if name in (item, Path(item).name)]
        return {**fields, "model": alike[0]} if alike else fields

    def sentence(self, error: Exception) -> str | None:
        """Return an error as a sentence, None for an unexpected one."""
        if isinstance(error, click.BadParameter) and error.param is not None:
            names = {option: field for field, option in _OPTIONS.items()}
            return f"{names.get(error.param.name or '', error.param.name)}: {error.message}".capitalize()
        if isinstance(error, click.ClickException):
            return error.format_message()
        return format_error(error) if is_expected(error) else None

    # -- trainings ----------------------------------------------------------------------------------------------------

    def runs(self) -> list[str]:
        """Return the folders of trainings, the newest first."""
        return [os.path.dirname(path) or "." for path in self._newest_first(_METRICS)]

    def run(self, folder: str) -> tuple[str, Any, Any]:
        """Return the last figures of a training in words, its curve, and its newest sheet, as images or None."""
        from ..data.decoding import decode
        from ..evaluation.plots import loss_curve

        log = MetricsLog(Path(folder, "metrics.jsonl"), writes=False)
        history = {name: curve for name, curve in log.history().items() if curve}
        words = "; ".join(f"{name}: step {curve[-1][0]:,}, loss {curve[-1][1]:.4f}" for name, curve in history.items())
        sheets = sorted(Path(folder).glob("sample-*.*"), key=lambda path: path.stat().st_mtime_ns)
        sheet = decode(sheets[-1]) if sheets else None
        return words or "nothing is logged yet", loss_curve(history) if history else None, sheet


def _given(form: Form) -> dict[str, Any]:
    """Return the options that name the given image."""
    if form.task == "inpaint":
        return {"inpaint": form.image}
    return {"init": form.image} | ({} if form.strength is None else {"strength": form.strength})


def _text(value: Any) -> str:
    return "" if value is None else ",".join(map(str, value)) if isinstance(value, list) else str(value)


def run(folder: str, output: str, host: str, port: int, password: str | None, device: str, **shown: bool) -> None:
    """Serve the page until Ctrl-C or SIGTERM.

    Args:
        folder, output, host, port, password, device: as options of the command.
        shown: the options "opens", "as_json" and "quiet".

    Raises:
        click.UsageError: other machines would be let in without a password, or the output folder cannot be used.
    """
    from ..ui.guard import is_loopback
    from ..ui.server import USER, serving

    if not is_loopback(host) and not password:
        raise click.UsageError(f"--host {host} lets other machines in: set IMAGEN_UI_PASSWORD, or give --password")
    check_place(Path(output, "name"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with serving(LocalStudio(folder, output, device), host, port, password) as address:
        click.echo(json.dumps({"command": "ui", "address": address}) if shown["as_json"] else address)
        if not shown["quiet"]:
            if not is_loopback(host):
                say(f'the name is "{USER}"; nothing is encrypted, so use it in a network that you trust')
            say("Ctrl-C ends it")
        if shown["opens"] and not webbrowser.open(address):
            say("no browser was found here: open the address above")
        threading.Event().wait()
