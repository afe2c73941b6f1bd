"""Vision models of the transformers library as feature extractors, from a folder on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..images import Size, resize
from .features import EXTRACTORS, FeatureExtractor

SETTINGS = "preprocessor_config.json"


@EXTRACTORS.register("transformers", "dino", "clip")
class LocalModel(FeatureExtractor):
    """A vision model in a local folder: DINO, CLIP, SigLIP, ViT, ConvNeXt or another one that transformers knows.

    The vectors are the image embedding of models with text (CLIP), else the class token of the last layer (DINO, ViT),
    else the pooled last map. Images are resized to the size and normalised with the statistics of the folder's
    ``preprocessor_config.json``, without cropping. Nothing is downloaded, and no code of the folder runs.

    Args:
        folder: with ``config.json``, the weights and ``preprocessor_config.json``.

    Raises:
        ValueError: no folder, or one without a usable model.
    """

    dim = 0
    argument = "the path of the model's folder"

    def __init__(self, folder: str = "") -> None:
        path = Path(folder).expanduser()
        if not folder or not path.is_dir():
            raise ValueError(
                f'a model of transformers needs its folder: dino:/path/to/folder; got "{folder}", which is not a folder'
            )
        self.name = f"transformers:{path.resolve().name}"
        self.size, self.mean, self.std = _preprocessing(path / SETTINGS)
        from transformers import AutoModel

        try:
            model = AutoModel.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{path} holds no vision model that transformers can open: {error}") from error
        self.net = model.float().eval().requires_grad_(False)
        files = sorted([*path.glob("*.safetensors"), *path.glob("*.bin")])
        self.weights = files[0] if len(files) == 1 else None
        self.dim = self.extract(torch.zeros(1, 3, *self.size)).shape[1]

    @classmethod
    def available(cls) -> bool:
        """Return False: a folder must be named."""
        return False

    @torch.no_grad()
    def extract(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Compute the vectors of one batch of RGB images in [0, 1]."""
        pixels = (resize(images, self.size, "bicubic") - self.mean) / self.std
        if hasattr(self.net, "get_image_features"):
            found = self.net.get_image_features(pixel_values=pixels)
            return getattr(found, "pooler_output", found)
        found = self.net(pixel_values=pixels)
        if hasattr(getattr(self.net, "embeddings", None), "cls_token"):
            # not the pooler: where a file has no weights for it, transformers draws them at random
            return found.last_hidden_state[:, 0]
        return found.pooler_output.flatten(1)


def _preprocessing(path: Path) -> tuple[Size, Tensor, Tensor]:
    """Return size, mean and standard deviation of the images that a model was trained with."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        cropped = settings.get("do_center_crop", False) and "crop_size" in settings
        size = _side(settings["crop_size" if cropped else "size"])
        mean, std = (torch.tensor(settings[name]).reshape(3, 1, 1) for name in ("image_mean", "image_std"))
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, AttributeError) as error:
        raise ValueError(
            f"{path} must hold the size, image_mean and image_std of the model's images: "
            f"{type(error).__name__}: {error}"
        ) from error
    return size, mean, std


def _side(size: Any) -> Size:
    if isinstance(size, int):
        return size, size
    if "height" in size:
        return int(size["height"]), int(size["width"])
    return int(size["shortest_edge"]), int(size["shortest_edge"])
