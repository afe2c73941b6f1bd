"""Inception-v3 as in the Frechet Inception Distance, with weights that the user gives.

The layers are those of Szegedy et al. 2015 (arXiv 1512.00567) with the poolings of the network of 2015-12-05, which
Heusel et al. 2017 (arXiv 1706.08500) took for FID. Names of parameters are those of the public file
``pt_inception-2015-12-05-6726825d.pth``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..images import resize
from ..wording import first_of
from .features import EXTRACTORS, FeatureExtractor

#: First letters of the digest of the file whose features give FID.
FID_DIGEST = "6726825d"

#: Environment variable with the path of the weights.
VARIABLE = "IMAGEN_INCEPTION"


class Conv(nn.Module):
    """Convolution, batch norm and ReLU.

    Args:
        dim, out: channels.
        kernel: size of the kernel, one number or (height, width); padding keeps the size at stride 1.
        stride: with 2, or without ``padded``, the map is not padded.
    """

    def __init__(
        self, dim: int, out: int, kernel: int | tuple[int, int] = 1, stride: int = 1, padded: bool = True
    ) -> None:
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2, width // 2) if padded and stride == 1 else 0
        self.conv = nn.Conv2d(dim, out, (height, width), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        """Return the activated map."""
        return F.relu(self.bn(self.conv(x)))


class Branches(nn.Module):
    """Parallel chains of convolutions, their results concatenated.

    Args:
        chains: names of layers, in order; a list within a chain is parallel again.
        pool: the last branch, followed by the layer ``branch_pool`` if there is one.
        layers: by name.
    """

    def __init__(self, chains: list[list[Any]], pool: Callable[[Tensor], Tensor], **layers: Conv) -> None:
        super().__init__()
        self.chains, self.pool = chains, pool
        for name, layer in layers.items():
            self.add_module(name, layer)

    def _chain(self, x: Tensor, chain: list[Any]) -> Tensor:
        for step in chain:
            parts = [step] if isinstance(step, str) else step
            x = torch.cat([self.get_submodule(name)(x) for name in parts], 1)
        return x

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        """Return the concatenated maps."""
        pooled = self.pool(x)
        if hasattr(self, "branch_pool"):
            pooled = self.branch_pool(pooled)
        return torch.cat([*(self._chain(x, chain) for chain in self.chains), pooled], 1)


_mean = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
_largest = partial(F.max_pool2d, kernel_size=3, stride=1, padding=1)
_halved = partial(F.max_pool2d, kernel_size=3, stride=2)


def _block_a(dim: int, pooled: int) -> Branches:
    return Branches(
        [["branch1x1"], ["branch5x5_1", "branch5x5_2"], ["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"]],
        _mean,
        branch1x1=Conv(dim, 64),
        branch5x5_1=Conv(dim, 48),
        branch5x5_2=Conv(48, 64, 5),
        branch3x3dbl_1=Conv(dim, 64),
        branch3x3dbl_2=Conv(64, 96, 3),
        branch3x3dbl_3=Conv(96, 96, 3),
        branch_pool=Conv(dim, pooled),
    )


def _block_b(dim: int) -> Branches:
    return Branches(
        [["branch3x3"], ["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"]],
        _halved,
        branch3x3=Conv(dim, 384, 3, stride=2),
        branch3x3dbl_1=Conv(dim, 64),
        branch3x3dbl_2=Conv(64, 96, 3),
        branch3x3dbl_3=Conv(96, 96, 3, stride=2),
    )


def _block_c(inner: int, dim: int = 768) -> Branches:
    row, column = (1, 7), (7, 1)
    names = [f"branch7x7dbl_{number}" for number in range(1, 6)]
    return Branches(
        [["branch1x1"], ["branch7x7_1", "branch7x7_2", "branch7x7_3"], [*names]],
        _mean,
        branch1x1=Conv(dim, 192),
        branch7x7_1=Conv(dim, inner),
        branch7x7_2=Conv(inner, inner, row),
        branch7x7_3=Conv(inner, 192, column),
        branch7x7dbl_1=Conv(dim, inner),
        branch7x7dbl_2=Conv(inner, inner, column),
        branch7x7dbl_3=Conv(inner, inner, row),
        branch7x7dbl_4=Conv(inner, inner, column),
        branch7x7dbl_5=Conv(inner, 192, row),
        branch_pool=Conv(dim, 192),
    )


def _block_d(dim: int = 768) -> Branches:
    names = [f"branch7x7x3_{number}" for number in range(1, 5)]
    return Branches(
        [["branch3x3_1", "branch3x3_2"], [*names]],
        _halved,
        branch3x3_1=Conv(dim, 192),
        branch3x3_2=Conv(192, 320, 3, stride=2),
        branch7x7x3_1=Conv(dim, 192),
        branch7x7x3_2=Conv(192, 192, (1, 7)),
        branch7x7x3_3=Conv(192, 192, (7, 1)),
        branch7x7x3_4=Conv(192, 192, 3, stride=2),
    )


def _block_e(dim: int, pool: Callable[[Tensor], Tensor]) -> Branches:
    row, column = (1, 3), (3, 1)
    return Branches(
        [
            ["branch1x1"],
            ["branch3x3_1", ["branch3x3_2a", "branch3x3_2b"]],
            ["branch3x3dbl_1", "branch3x3dbl_2", ["branch3x3dbl_3a", "branch3x3dbl_3b"]],
        ],
        pool,
        branch1x1=Conv(dim, 320),
        branch3x3_1=Conv(dim, 384),
        branch3x3_2a=Conv(384, 384, row),
        branch3x3_2b=Conv(384, 384, column),
        branch3x3dbl_1=Conv(dim, 448),
        branch3x3dbl_2=Conv(448, 384, 3),
        branch3x3dbl_3a=Conv(384, 384, row),
        branch3x3dbl_3b=Conv(384, 384, column),
        branch_pool=Conv(dim, 192),
    )


class InceptionV3(nn.Module):
    """The network up to its last pooling: images ``(b, 3, 299, 299)`` in [-1, 1] to vectors ``(b, 2048)``."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3, padded=False)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3)
        self.Conv2d_3b_1x1 = Conv(64, 80)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3, padded=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _block_a(192, 32), _block_a(256, 64), _block_a(288, 64)
        self.Mixed_6a = _block_b(288)
        self.Mixed_6b, self.Mixed_6c = _block_c(128), _block_c(160)
        self.Mixed_6d, self.Mixed_6e = _block_c(160), _block_c(192)
        self.Mixed_7a = _block_d()
        self.Mixed_7b, self.Mixed_7c = _block_e(1280, _mean), _block_e(2048, _largest)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 2048"]:
        """Return the mean of the last map."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(images)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(_halved(x)))
        x = _halved(x)
        for name, block in self.named_children():
            x = block(x) if name.startswith("Mixed") else x
        return x.mean((2, 3))

    def load(self, path: Path) -> None:
        """Load the parameters of a file; those of its classifier are left out.

        Raises:
            ValueError: a file that is not readable, or whose parameters are others.
        """
        try:
            given = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises errors of many kinds for files of another format
            raise ValueError(f"{path} is not readable as weights of Inception-v3: {error}") from error
        own = self.state_dict()
        given = given if isinstance(given, dict) else {}
        # files that were written by early versions of torch do not count batches
        wanted = [name for name in own if not name.endswith("num_batches_tracked")]
        wrong = [name for name in wanted if getattr(given.get(name), "shape", None) != own[name].shape]
        if wrong:
            raise ValueError(
                f"{path} does not hold the weights of Inception-v3: no {first_of(wrong)} of the right shape; FID needs "
                f"pt_inception-2015-12-05-{FID_DIGEST}.pth"
            )
        self.load_state_dict({name: given[name] for name in wanted}, strict=False)


@EXTRACTORS.register("inception")
class Inception(FeatureExtractor):
    """Inception-v3's pooled features; Frechet distances of them are FID if the weights are those of FID.

    Images are resized to 299 x 299, antialiased (Parmar et al. 2022, arXiv 2104.11222).

    Args:
        path: file of the weights, such as ``pt_inception-2015-12-05-6726825d.pth``; default: the environment variable
            IMAGEN_INCEPTION.

    Raises:
        ValueError: no path, no such file, or a file of something else.
    """

    name = "inception"
    dim = 2048
    argument = "the path of its weights"

    def __init__(self, path: str = "") -> None:
        path = path or os.environ.get(VARIABLE, "")
        if not path:
            raise ValueError(
                f"inception needs its weights: inception:/path/to/weights.pth, or {VARIABLE} in the environment"
            )
        self.weights = Path(path).expanduser()
        if not self.weights.is_file():
            raise ValueError(f"inception needs a file of weights, {self.weights} is none")
        self.net = InceptionV3().eval().requires_grad_(False)
        self.net.load(self.weights)
        self.is_fid = str(self.sha256()).startswith(FID_DIGEST)

    @classmethod
    def available(cls) -> bool:
        """Return whether the environment names a file."""
        return bool(os.environ.get(VARIABLE)) and Path(os.environ[VARIABLE]).expanduser().is_file()

    def extract(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Compute the vectors of one batch of RGB images in [0, 1]."""
        return self.net(resize(images, 299, "bilinear") * 2 - 1)
