"""The command line: ``imagen``. Each file in this folder is a command, except those that begin with an underscore."""

from __future__ import annotations

import json
import os
import pkgutil
import sys
import traceback
from importlib import import_module
from typing import Any

import click

from ..registry import suggestion
from ..version import __version__
from ._errors import CommandFailed, exit_code, format_error, one_line, warnings_as_lines
from ._files import COLLECTED
from ._options import Place
from ._program import ARGUMENTS
from ._signals import is_main_process

#: spellings of the README era and of other projects, and the canonical ones for them
ALIASES = {
    "epoches": "epochs",
    "max-train-steps": "max-steps",
    "train-batch-size": "batch-size",
    "train-data-dir": "data",
    "dataset-name": "data",
    "dataset": "data",
    "dtype": "precision",
    "mixed-precision": "precision",
    "resume-from-checkpoint": "resume",
    "checkpoints-total-limit": "keep",
    "report-to": "log-with",
    "checkpointing-steps": "save-every",
    "guidance-scale": "cond-scale",
    "scale": "cond-scale",
    "cfg": "cond-scale",
    "num-inference-steps": "steps",
    "images-per-prompt": "num-images",
    "negative-prompt": "negative",
    "from-file": "prompts",
    "outdir": "output",
}
#: commands in the order in which they are met; any others follow
ORDER = (
    "demo", "sample", "enlarge", "ui", "train", "eval", "compare", "config", "info", "profile", "export", "report",
    "doctor", "completion",
)  # fmt: skip
_DEBUG = "imagen.debug"


def canonical_option(name: str) -> str:
    """The canonical spelling of an option or command: dashes for underscores, and the names of `ALIASES`."""
    dashed = name.replace("_", "-")
    return ALIASES.get(dashed, dashed)


def _remember_debug(context: click.Context, _: click.Parameter, value: bool) -> None:
    context.meta[_DEBUG] = context.meta.get(_DEBUG, False) or value


def _debug_option() -> click.Option:
    return click.Option(
        ["--debug"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_remember_debug,
        help="Show the traceback of an error.",
    )


def _import_file(context: click.Context, _: click.Parameter, paths: tuple[str, ...]) -> None:
    from ..extensions import import_file

    for path in paths:
        try:
            import_file(path)
        except (OSError, ImportError) as error:
            raise click.UsageError(f"--import: {error}", context) from error


def _import_option() -> click.Option:
    return click.Option(
        ["--import", "imported"],
        metavar="FILE",
        type=Place(),
        multiple=True,
        is_eager=True,
        expose_value=False,
        callback=_import_file,
        help="Import a Python file of your own first, which registers networks, samplers and the like.",
    )


def _collect(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        context.meta[COLLECTED] = {"command": context.info_name, "outputs": []}


def _json_option() -> click.Option:
    return click.Option(
        ["--json", "as_json"],
        is_flag=True,
        expose_value=False,
        callback=_collect,
        help="Print one JSON object for programs: the paths of all results, or the error.",
    )


class Commands(click.Group):
    """The files of this folder as commands, each imported when it is needed; errors end as one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all commands."""
        found = (item.name for item in pkgutil.iter_modules(__path__) if not item.ispkg)
        names = sorted(name for name in found if not name.startswith("_"))
        return sorted(names, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, or None."""
        if cmd_name not in self.list_commands(ctx):
            return None
        command = getattr(import_module(f".{cmd_name}", __name__), cmd_name)
        if all(parameter.name != "debug" for parameter in command.params):
            own = any(parameter.name == "as_json" for parameter in command.params)
            command.params += [*([] if own else [_json_option()]), _import_option(), _debug_option()]
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the first argument names.

        Raises:
            click.UsageError: no such command; the message says which one was meant, or which there are.
        """
        known = tuple(self.list_commands(ctx))
        if args and not args[0].startswith("-") and canonical_option(args[0]) not in known:
            hint = suggestion(args[0], known)
            raise click.UsageError(f'no command "{args[0]}"; known: {", ".join(known)}{hint}', ctx)
        name, command, rest = super().resolve_command(ctx, args)
        ctx.meta[ARGUMENTS] = list(rest)
        return name, command, rest

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an error becomes a sentence with an exit code."""
        try:
            result = super().invoke(ctx)
        except click.exceptions.Exit as left:
            result = left.exit_code
        except (click.ClickException, click.Abort, KeyboardInterrupt):
            raise
        except Exception as error:
            if ctx.meta.get(_DEBUG):
                traceback.print_exc()
            raise CommandFailed(format_error(error), exit_code(error)) from error
        if COLLECTED in ctx.meta and is_main_process():
            click.echo(json.dumps({**ctx.meta[COLLECTED], "exit_code": result if isinstance(result, int) else 0}))
        return result

    def main(self, *args: Any, standalone_mode: bool = True, **settings: Any) -> Any:
        """Run and leave with an exit code; with ``standalone_mode=False`` return or raise, as click does."""
        # threads that wait for each other soon sleep: by default they spin so long that, where something else runs as
        # well, they take each other's time and a training becomes many times slower. Read when torch is imported.
        if "OMP_WAIT_POLICY" not in os.environ:
            os.environ.setdefault("GOMP_SPINCOUNT", "10000")
        if not standalone_mode:
            return super().main(*args, standalone_mode=False, **settings)
        try:
            with warnings_as_lines():
                result = super().main(*args, standalone_mode=False, **settings)
        except click.ClickException as error:
            text, code = one_line(error), error.exit_code
        except (click.Abort, KeyboardInterrupt):
            text, code = "interrupted", 130
        else:
            sys.exit(result if isinstance(result, int) else 0)
        click.echo(text, err=True)
        words = list(args[0] or () if args else settings.get("args") or sys.argv[1:])
        wants = "--json" in words[: words.index("--") if "--" in words else None]  # it may stand beyond the mistake
        if wants and is_main_process():
            click.echo(json.dumps({"error": text, "exit_code": code}))
        sys.exit(code)


@click.group(
    "imagen",
    cls=Commands,
    invoke_without_command=True,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": canonical_option,
        "max_content_width": 110,
        "auto_envvar_prefix": "IMAGEN",
    },
)
@click.version_option(__version__, prog_name="imagen")
@click.pass_context
def main(context: click.Context) -> None:
    """Text-to-image and text-to-video diffusion cascades: write a configuration, train, sample.

    \b
    imagen demo                               train a small cascade, show images
    imagen sample "a 3d render of a bear on a white background"
    imagen train --data ./images --unet all   train on images with captions
    imagen train --data moving-digits         train a model of videos
    imagen config                             write ./imagen_config.json, to edit

    Every option is also an environment variable: IMAGEN_TRAIN_BATCH_SIZE=8 is --batch-size 8 of `imagen train`.

    Results go to standard output, messages to standard error. Exit codes: 0 done, 1 failed, 2 usage, 3 data unusable,
    4 checkpoint unusable, 5 out of memory; interrupted and saved: 130 by Ctrl-C, 143 by SIGTERM, 129 as the terminal
    closed, 141 as a pipe closed.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


main.params += [_import_option(), _debug_option()]

#: the names under which the command group has always been known
imagen = imagen_pytorch = main
