"""``imagen completion``: the script by which a shell completes commands, options and file names."""

from __future__ import annotations

import click


@click.command(short_help="Print the completion script of a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script that lets Tab complete the commands, options, values and file names of this program.

    \b
    imagen completion bash >> ~/.bashrc
    source <(imagen completion bash)
    imagen completion zsh >> ~/.zshrc
    imagen completion fish > ~/.config/fish/completions/imagen.fish
    """
    from click.shell_completion import BashComplete, FishComplete, ZshComplete

    from . import main
    from ._files import show

    kind = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}[shell]
    show(kind(main, {}, "imagen", "_IMAGEN_COMPLETE").source())
