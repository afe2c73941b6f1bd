"""Models from their descriptions: plain containers, as `Cascade.to_config` returns them and checkpoints hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ..nn.presets import UNETS
from ..registry import Registry
from ..text import DEFAULT_T5_NAME, known_dim
from .cascade import Cascade
from .sizes import is_pair

CASCADES: Registry[type[Cascade]] = Registry("type of model")


def unet_from_config(config: Mapping[str, Any]) -> nn.Module:
    """Build a network from its constructor arguments and the name of its class ("type", by default "Unet").

    Raises:
        ValueError: an unknown network.
        TypeError: an argument that the network does not take.
    """
    arguments = dict(config)
    return UNETS[arguments.pop("type", "Unet")](**arguments)


def imagen_from_config(config: Mapping[str, Any]) -> Cascade:
    """Build the model that `Cascade.to_config` described, with new weights.

    The description is data: nothing is imported or fetched, and the text encoder is not used.

    Raises:
        ValueError: an unknown model or network, arguments that contradict each other, or a text model whose width
            of caption embeddings is neither recorded nor well known.
        TypeError: an argument that the model does not take.
    """
    arguments = dict(config)
    kind = arguments.pop("type", "original")
    unets = [unet_from_config(unet) for unet in arguments.pop("unets")]
    if arguments.get("condition_on_text", True) and arguments.get("text_embed_dim") is None:
        arguments["text_embed_dim"] = _recorded_dim(arguments, unets)
    sizes = arguments.get("image_sizes")
    if len(unets) == 1 and is_pair(sizes):  # a rectangle, as earlier versions recorded it
        arguments["image_sizes"] = [list(sizes)]
    return CASCADES[kind](unets, **arguments)


def _recorded_dim(arguments: Mapping[str, Any], unets: Sequence[nn.Module]) -> int | None:
    """Return the width of caption embeddings of a described model that does not state it.

    Raises:
        ValueError: only the encoder itself has the width.
    """
    if arguments.get("text_encoder") is not None:
        return None  # the caller's encoder has it
    name = arguments.get("text_encoder_name", DEFAULT_T5_NAME)
    known = None if name is None else known_dim(name)
    if known is None:
        stated = (getattr(unet, "_locals", {}).get("text_embed_dim") for unet in unets)
        known = next((dim for dim in stated if dim is not None), None)
    if known is None:
        raise ValueError(
            f'the description lacks the width of the embeddings of its text encoder "{name}" '
            "(imagen.text_embed_dim), and nothing is fetched to find out: add that number, or build the model yourself"
        )
    return known
