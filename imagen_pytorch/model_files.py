"""Models as files and folders: written by the model itself, and opened by its class."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from .cascade.cascade import Cascade
from .cascade.stage import is_null
from .checkpoints import CheckpointMismatch, nonfinite_tensors, write_checkpoint
from .checkpoints.model import load_imagen_from_checkpoint
from .text import TextEncoder
from .version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable

#: the file with the weights in the folder of a model, under the name that the hub looks for
WEIGHTS = "model.safetensors"

Model = TypeVar("Model", bound=Cascade)


def stored_weights(weights: Mapping[str, Tensor], half: bool) -> dict[str, Tensor]:
    """Return finite weights, on request in float16.

    Raises:
        ValueError: weights that are not finite, or that float16 cannot hold.
    """
    kept = {name: item.half() if half and item.is_floating_point() else item for name, item in weights.items()}
    if broken := nonfinite_tensors(kept):
        names = ", ".join(broken[:5]) + (" ..." if len(broken) > 5 else "")
        if half and not nonfinite_tensors(dict(weights)):
            raise ValueError(f"weights beyond the range of float16 ({len(broken)}): {names}; pass half=False")
        raise ValueError(f"weights that are not finite, NaN or infinity ({len(broken)}): {names}")
    return kept


def write_model(contents: Mapping[str, Any], path: str | Path, overwrite: bool = True) -> None:
    """Write a checkpoint without anything that only training needs. A ``.safetensors`` file describes itself to other
    tools, too: by the keys of ModelSpec 1.0.1, and by the arguments of the model as JSON under "imagen.config".

    Raises:
        CheckpointNotWritten: the file exists and must not be replaced, or it cannot be written.
    """
    config, sizes = contents["imagen_params"], contents["imagen_params"]["image_sizes"]
    size = sizes[-1] if isinstance(sizes, list) else sizes
    height, width = size if isinstance(size, list) else (size, size)
    metadata = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"imagen-cascade/{contents['imagen_type']}",
        "modelspec.implementation": "imagen-pytorch",
        "modelspec.title": Path(path).stem,
        "modelspec.resolution": f"{width}x{height}",
        "imagen.config": json.dumps(config),
    }
    write_checkpoint(contents, path, overwrite=overwrite, metadata=metadata)


class ModelFiles(Cascade):
    """The part of `Imagen` and `ElucidatedImagen` that writes and opens files."""

    def save(self, path: str | Path, half: bool = False, overwrite: bool = True) -> None:
        """Write the weights and the description of the model, from which `load_imagen_from_checkpoint` opens it.

        The file is a checkpoint: the commands take it, and so does ``ImagenTrainer.load(path, only_model=True)``.

        Args:
            path: a local path or any fsspec URL; ``.safetensors`` at its end chooses that format, else that of torch.
            half: store floating-point weights in float16. The opened model computes in single precision all the same.
            overwrite: whether an existing file may be replaced.

        Raises:
            TypeError: the model was made with an object that a file cannot hold.
            ValueError: weights that are not finite, or that float16 cannot hold.
            CheckpointNotWritten: the file exists and must not be replaced, or it cannot be written.
        """
        config = self.to_config()
        contents = {"version": __version__, "imagen_type": config.pop("type"), "imagen_params": config}
        write_model({**contents, "model": stored_weights(self.state_dict(), half)}, path, overwrite)

    def save_pretrained(
        self, folder: str | Path, *, half: bool = False, card: Mapping[str, str] | None = None, **options: Any
    ) -> str | None:
        """Write the model as a folder for the Hugging Face hub: weights, ``config.json`` and a model card.

        Args:
            folder: where to write; it is made. A card (``README.md``) that is there already stays.
            half: as for `save`.
            card: sections of the model card by heading, such as ``{"Training data": "...", "Limitations": "..."}``;
                "license" is the licence by its identifier on the hub.
            options: of ``save_pretrained`` of ``huggingface_hub.ModelHubMixin``, such as ``push_to_hub``.

        Returns:
            with ``push_to_hub=True`` the address of the commit.
        """
        return _on_hub()(self, half).save_pretrained(folder, model_card_kwargs={"card": card or {}}, **options)

    def push_to_hub(
        self, repo_id: str, *, half: bool = False, card: Mapping[str, str] | None = None, **options: Any
    ) -> str:
        """Upload the files of `save_pretrained` to a repository of the hub, which is made, and return the address of
        the commit.

        Args:
            repo_id: "user/name".
            half, card: as for `save_pretrained`.
            options: of ``push_to_hub`` of ``huggingface_hub.ModelHubMixin``, such as ``private`` and ``token``.
        """
        return _on_hub()(self, half).push_to_hub(repo_id, model_card_kwargs={"card": card or {}}, **options)

    @classmethod
    def from_pretrained(
        cls: type[Model],
        folder_or_repo: str | Path,
        *,
        text_encoder: TextEncoder | Callable[..., Any] | None = None,
        **options: Any,
    ) -> Model:
        """Open a folder that `save_pretrained` wrote, or a repository of the hub. Nothing is fetched for a folder.

        Args:
            folder_or_repo: a folder, or "user/name" of a model on the hub.
            text_encoder: as for `load_imagen_from_checkpoint`.
            options: of ``from_pretrained`` of ``huggingface_hub.ModelHubMixin``, such as ``revision`` and ``token``.

        Raises:
            CheckpointMissing, CheckpointError, CheckpointMismatch: as `load_imagen_from_checkpoint` does; the last one
                also for a model of another class.
        """
        model = _on_hub().from_pretrained(folder_or_repo, text_encoder=text_encoder, **options)
        if not isinstance(model, cls):
            kind = type(model).__name__
            raise CheckpointMismatch(f"{folder_or_repo} holds an {kind}: open it with {kind}.from_pretrained")
        return model


def _card(model: Cascade, card: Mapping[str, str]) -> str:
    """The model card: what the model is and how it is opened, then the sections of the caller."""
    sizes = " -> ".join("x".join(map(str, size)) if isinstance(size, tuple) else f"{size}x{size}"
                        for size in model.image_sizes)  # fmt: skip
    counts = [sum(item.numel() for item in unet.parameters()) for unet in model.unets if not is_null(unet)]
    noun = "video" if model.is_video else "image"
    task = f"{'unconditional' if model.unconditional else 'text-to'}-{noun}{'-generation' * model.unconditional}"
    texts = "none" if model.unconditional else f"`{model.text_encoder_name}`, {model.text_embed_dim} numbers a token"
    call = "" if model.unconditional else 'texts=["a red heart"], '
    front = ["---", "library_name: imagen-pytorch", f"pipeline_tag: {task}", f"license: {card.get('license', 'other')}"]
    facts = [
        f"- {type(model).__name__}: {len(counts)} U-Net{'s' * (len(counts) > 1)} for {noun}s, {sizes}",
        f"- parameters: {', '.join(f'{count:,}' for count in counts)}",
        f"- captions: {texts}",
        f"- sampling steps: {', '.join(str(stage.process.steps) for stage in model.stages)}",
    ]
    use = [
        "```python",
        f"from imagen_pytorch import {type(model).__name__}",
        f'imagen = {type(model).__name__}.from_pretrained("this folder or repository")',
        f"imagen.sample({call}return_pil_images=True)[0]",
        "```",
    ]
    parts = [f"## {title}\n\n{text}" for title, text in card.items() if title != "license"]
    top = f"A diffusion cascade of imagen-pytorch {__version__}."
    return "\n\n".join(["\n".join([*front, "---"]), top, "\n".join(facts), "\n".join(use), *parts]) + "\n"


@functools.cache
def _on_hub() -> type[Any]:
    """The class that the hub's library needs, made when it is used: importing that library takes a while."""
    from huggingface_hub import ModelCard, ModelHubMixin, hf_hub_download

    class OnHub(ModelHubMixin):
        """A model between its folder and the hub."""

        def __init__(self, model: ModelFiles, half: bool) -> None:
            self.model, self.half = model, half
            self._hub_mixin_config = model.to_config()

        def _save_pretrained(self, save_directory: Path) -> None:
            self.model.save(save_directory / WEIGHTS, self.half)

        def generate_model_card(self, card: Mapping[str, str]) -> ModelCard:
            return ModelCard(_card(self.model, card))

        @classmethod
        def _from_pretrained(
            cls, *, model_id: str, text_encoder: TextEncoder | Callable[..., Any] | None, **where: Any
        ) -> Cascade:
            here = os.path.isdir(model_id)
            path = os.path.join(model_id, WEIGHTS) if here else hf_hub_download(model_id, WEIGHTS, **where)
            return load_imagen_from_checkpoint(path, text_encoder=text_encoder).eval()

    return OnHub
