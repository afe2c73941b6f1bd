"""Networks that can be written to a file, read back and refitted."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..construction import class_name, plain
from ..io.atomic import replacing
from ..registry import Registry

UNETS: Registry[type[nn.Module]] = Registry("network")

Network = TypeVar("Network", bound=nn.Module)


class Persistent(nn.Module):
    """A network that stores its constructor's arguments (``_locals``, set by `records_construction`)."""

    _locals: dict[str, Any]
    cond_on_text: bool
    self_cond: bool
    crop_coordinates: bool
    augment_dim: int
    lowres_cond: bool
    channels: int
    channels_out: int
    text_embed_dim: int | None

    def cast_model_parameters(
        self: Network,
        *,
        lowres_cond: bool,
        text_embed_dim: int | None,
        channels: int,
        channels_out: int,
        cond_on_text: bool,
        self_cond: bool | None = None,
        crop_coordinates: bool | None = None,
        augment_dim: int | None = None,
    ) -> Network:
        """Return itself if it fits already, else a new network with these choices and every weight that still fits.

        None leaves ``self_cond``, ``crop_coordinates`` and ``augment_dim`` as they are. A trained weight that no longer
        fits is named in a warning.
        """
        optional = {"self_cond": self_cond, "crop_coordinates": crop_coordinates, "augment_dim": augment_dim}
        wanted = {
            "lowres_cond": lowres_cond,
            "channels": channels,
            "channels_out": channels_out,
            "cond_on_text": cond_on_text,
            **{name: value for name, value in optional.items() if value is not None},
        }
        same_text = not cond_on_text or self.text_embed_dim == text_embed_dim
        if same_text and all(getattr(self, name) == value for name, value in wanted.items()):
            return self
        text = {"text_embed_dim": text_embed_dim} if cond_on_text else {}
        fitted = type(self)(**{**self._locals, **wanted, **text})
        kept, target = self.state_dict(), fitted.state_dict()
        fits = {name: value for name, value in kept.items() if name in target and target[name].shape == value.shape}
        if any(not value.is_meta for value in fits.values()):
            fitted.load_state_dict(fits, strict=False)  # what is not there stays as it is
        lost = [name for name in kept if name not in fits]
        # the last layer of a new network is zero: if it is not, this network was trained
        last = getattr(self, "final_conv", None)  # of a network of one's own nothing is known
        if lost and last is not None and any(not part.is_meta and bool(part.any()) for part in last.parameters()):
            warnings.warn(
                f"the U-Net was refitted to its place in the cascade; {len(lost)} trained weights no longer fit and "
                f"start afresh, among them {', '.join(lost[:3])}",
                stacklevel=5,
            )
        example = next(self.parameters())
        return fitted.to(example.device, example.dtype).train(self.training)

    def to_config_and_state_dict(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the constructor arguments and the weights."""
        return dict(self._locals), self.state_dict()

    @classmethod
    def from_config_and_state_dict(
        cls: type[Network], config: Mapping[str, Any], state_dict: Mapping[str, Tensor]
    ) -> Network:
        """Build the network with these arguments and weights."""
        network = cls(**config)
        network.load_state_dict(state_dict)
        return network

    def persist_to_file(self, path: str | os.PathLike[str]) -> None:
        """Write class, arguments and weights to a file. A missing folder is created.

        An existing file of that name is replaced only once the new one is complete.
        """
        path = Path(path).expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        config, state = self.to_config_and_state_dict()
        with replacing(path) as file:
            torch.save({"type": class_name(self), "config": plain(config), "state_dict": state}, file)

    @classmethod
    def hydrate_from_file(cls, path: str | os.PathLike[str]) -> Persistent:
        """Read the network that `persist_to_file` wrote, of its own class, on the CPU.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a damaged file, a file with other contents, or a network of a class that is not registered.
        """
        path = Path(path).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"no network at {path.absolute()}")
        try:
            stored = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, MemoryError):  # a problem of the machine, not damage of the file
            raise
        # the exception of a damaged file depends on where the damage is
        except Exception as error:
            raise ValueError(f"{path} is damaged, or not a file of persist_to_file ({type(error).__name__})") from error
        if not isinstance(stored, dict) or not all(isinstance(stored.get(it), dict) for it in ("config", "state_dict")):
            raise ValueError(f"{path} does not hold a network: persist_to_file writes its config and its state_dict")
        name = stored.get("type", cls.__name__)
        kind = cls if name == cls.__name__ else UNETS[name]
        return kind.from_config_and_state_dict(stored["config"], stored["state_dict"])
