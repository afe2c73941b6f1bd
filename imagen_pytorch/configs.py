"""Configuration classes whose fields are the constructors' arguments, so that every default exists once."""

from __future__ import annotations

import functools
import inspect
import operator
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from enum import Enum
from typing import Annotated, Any, Literal, Optional, Union, get_type_hints

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)
from torch.utils.data import DataLoader

from .cascade.cascade import Cascade
from .cascade.options import FAMILIES
from .cascade.sizes import is_pair
from .construction import ModelTooLarge, build_on_meta, main_memory
from .diffusion.schedules import SCHEDULES
from .imagen import CASCADES
from .io.errors import reason
from .nn.presets import UNETS
from .signatures import ConfigError, Configuration, FieldError, model_from_signature, part
from .trainer import ImagenTrainer
from .training.arguments import forwarded

#: Names of the noise schedules as an enum.
NoiseSchedule = Enum("NoiseSchedule", {name: name for name in SCHEDULES.names()}, type=str)  # type: ignore[misc]


#: largest number of weights, buffers and modules of a network
_PARTS = 50_000


# -- networks ---------------------------------------------------------------------------------------------------------


class _UnetBase(Configuration):
    longest = 64  # more levels than any image has

    def create(self) -> Any:
        return self.target(**{name: value for name, value in self.given().items() if name != "type"})


class NullUnetConfig(Configuration):
    """Placeholder for a U-Net that is not used."""

    target = UNETS["NullUnet"]
    is_null: Literal[True] = True

    def create(self) -> Any:
        """Return the placeholder."""
        return self.target()


@functools.cache
def unet_model(name: str) -> type[Configuration]:
    """Return the configuration class of the network that is registered under this name.

    Raises:
        ValueError: an unknown network.
    """
    if UNETS[name] is NullUnetConfig.target:
        return NullUnetConfig
    return model_from_signature(UNETS[name], base=_UnetBase, type=(Literal[name], name))


UnetConfig = unet_model("Unet")
Unet3DConfig = unet_model("Unet3D")


def _unet(values: Any) -> Configuration:
    """Return a network's configuration from a dict with an optional "type"; ``{"is_null": true}`` is the
    placeholder."""
    if isinstance(values, Configuration):
        return values
    if not isinstance(values, Mapping):
        raise ValueError(f"a U-Net is described by a dict of its arguments, got {type(values).__name__}")
    if not isinstance(values.get("type", "Unet"), str):
        raise ValueError(f"type is the name of a network, got {type(values['type']).__name__}")
    model = NullUnetConfig if values.get("is_null") else unet_model(values.get("type", "Unet"))
    dropped = ("is_null", "type") if model is NullUnetConfig else ("is_null",)
    return part(model, {key: value for key, value in values.items() if key not in dropped})


# -- models -----------------------------------------------------------------------------------------------------------


@contextmanager
def _at(place: str, given: Mapping[str, Any]) -> Iterator[None]:
    """Prefix errors with their place in the configuration.

    Args:
        place: of the part whose object is built.
        given: its entries.
    """
    try:
        yield
    except ModelTooLarge as error:
        raise ModelTooLarge(f"{place}: {error}") from error
    except NotImplementedError:  # a network that cannot be built on "meta"
        raise
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError) as error:
        text = reason(error)
        key = _key_of(text, given)
        raise ConfigError(f"{place}: {text}" if key is None else f"{place}.{key}: {_without(key, text)}") from error


def _key_of(message: str, given: Mapping[str, Any]) -> str | None:
    """Return the entry that a message is about: the first that it names, or else the only one whose value it
    repeats."""
    named = {match.start(): key for key in given if (match := re.search(rf"\b{re.escape(key)}\b", message))}
    if named:
        return named[min(named)]

    def repeats(value: Any) -> bool:
        inner = value if isinstance(value, list | tuple) else ()
        return any(message.endswith(f" {item!r}") for item in (value, *inner))

    repeated = [key for key, value in given.items() if repeats(value)]
    return repeated[0] if len(repeated) == 1 else None


@contextmanager
def _in_trainer(given: Mapping[str, Any]) -> Iterator[None]:
    """As `_at`, for impossible values only: a trainer may also open a checkpoint, whose errors stay as they are."""
    try:
        yield
    except (ValueError, TypeError) as error:
        key = _key_of(str(error), given)
        if type(error) not in (ValueError, TypeError) or key is None:
            raise
        raise ConfigError(f"trainer.{key}: {_without(key, str(error))}") from error


def _without(key: str, message: str) -> str:
    """Remove the name of an entry from the beginning of a message."""
    return message.removeprefix(f"{key} ")


class _CascadeBase(Configuration):
    longest = 64
    families = FAMILIES
    unets: list[Annotated[Any, BeforeValidator(_unet)]]
    video: bool = False
    _built: dict[str, Any] | None = PrivateAttr(None)  # the values with which the model was built on "meta"

    @model_validator(mode="before")
    @classmethod
    def _networks_of_videos(cls, values: Any) -> Any:
        """Make `Unet3D` the default type of U-Nets if ``video`` is set."""
        if not isinstance(values, Mapping) or not values.get("video") or "unets" not in values:
            return values
        unets = cls._one_or_many(values["unets"])
        if not isinstance(unets, list | tuple):
            return values
        named = [{"type": "Unet3D", **unet} if isinstance(unet, Mapping) else unet for unet in unets]
        return {**values, "unets": named}

    @field_validator("unets", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, Mapping | Configuration) else value

    @model_validator(mode="after")
    def _one_size_per_unet(self) -> _CascadeBase:
        sizes = getattr(self, "image_sizes", None)
        count = len(sizes) if isinstance(sizes, list | tuple) else 1
        if count != len(self.unets) and not (len(self.unets) == 1 and count == 2):  # one (height, width)
            raise FieldError("image_sizes", f"{len(self.unets)} unets need as many image_sizes, got {count}: {sizes}")
        return self

    def create(self) -> Cascade:
        """Build the model. It keeps this configuration in ``_config``.

        Raises:
            ConfigError: it cannot be built, or needs more memory than there is. Checked before memory is allocated.
        """
        memory, stated = main_memory(), self.model_dump(mode="json")
        try:
            if stated != self._built:
                with suppress(NotImplementedError):
                    build_on_meta(self._make, memory // 4, _PARTS * len(self.unets))
        except ModelTooLarge as error:
            raise ConfigError(f"{error}; this machine has a memory of {memory:,} bytes") from error
        imagen = self._make()
        imagen._config = stated
        return imagen

    def note_built(self, cascade: Cascade) -> None:
        """Let `create` skip its check if the model that was built of this configuration is small enough.

        Args:
            cascade: the model on the device "meta".
        """
        tensors = [*cascade.parameters(), *cascade.buffers()]
        numbers, parts = sum(item.numel() for item in tensors), len(tensors) + sum(1 for _ in cascade.modules())
        # a network that is fitted to its place is made twice
        if 2 * numbers <= main_memory() // 4 and 2 * parts <= _PARTS * len(self.unets):
            self._built = self.model_dump(mode="json")

    def _make(self) -> Cascade:
        arguments = {name: value for name, value in self.given().items() if name not in ("unets", "video")}
        sizes = arguments.get("image_sizes")
        if len(self.unets) == 1 and is_pair(sizes):
            warnings.warn(
                f"imagen.image_sizes: {list(sizes)} for one U-Net is taken for one stage of {sizes[0]}x{sizes[1]}; "
                f"write [{list(sizes)}]",
                stacklevel=2,
            )
            arguments["image_sizes"] = [tuple(sizes)]
        unets = []
        for index, unet in enumerate(self.unets):
            with _at(f"imagen.unets[{index}]", unet.given()):
                unets.append(unet.create())
        with _at("imagen", arguments):
            return self.target(unets, **arguments)


@functools.cache
def cascade_model(kind: str) -> type[Configuration]:
    """Return the configuration class of ``"original"``, ``"elucidated"`` or any other registered type.

    Raises:
        ValueError: an unknown type.
    """
    return model_from_signature(CASCADES[kind], base=_CascadeBase, skip=("text_encoder",))


ImagenConfig = cascade_model("original")
ElucidatedImagenConfig = cascade_model("elucidated")


# -- training ---------------------------------------------------------------------------------------------------------


class _TrainerBase(Configuration):
    """Arguments of the trainer, and keywords that it passes on: ``ema_*``, ``accelerate_*`` and those of Adam."""

    model_config = ConfigDict(extra="allow")

    @classmethod
    def _check_unknown(cls, values: dict[str, Any]) -> None:
        if not values:
            return
        try:
            forwarded(values, tuple(cls.model_fields))
        except TypeError as error:
            raise ValueError(str(error)) from error


TrainerOptions = model_from_signature(ImagenTrainer, base=_TrainerBase, skip=("imagen", "imagen_checkpoint_path"))


class ImagenTrainerConfig(TrainerOptions):  # type: ignore[misc, valid-type]
    """A trainer with its model: the trainer's arguments, ``imagen``, and a switch for `ElucidatedImagen`."""

    elucidated: bool = False
    video: bool = False
    imagen: Any

    @field_validator("imagen", mode="before")
    @classmethod
    def _parse_imagen(cls, value: Any, info: ValidationInfo) -> Any:
        kind = "elucidated" if info.data.get("elucidated") else "original"
        if isinstance(value, Mapping) and info.data.get("video"):
            value = {**value, "video": True}
        return value if isinstance(value, Configuration) else part(cascade_model(kind), value)

    def create(self) -> ImagenTrainer:
        """Build the trainer with a new model."""
        own = ("imagen", "elucidated", "video")
        options = {name: value for name, value in self.given().items() if name not in own}
        imagen = self.imagen.create()
        with _in_trainer(options):
            return self.target(imagen, **options)


# -- data -------------------------------------------------------------------------------------------------------------


def loader_arguments() -> frozenset[str]:
    """Return the names of the arguments of torch's ``DataLoader``."""
    return frozenset(inspect.signature(DataLoader).parameters) - {"dataset"}


#: the words in annotations of scalar arguments
_SCALARS = {"int": int, "float": float, "bool": bool, "str": str, "None": None, "Optional": Optional, "Union": Union}

#: types of arguments of the loader whose annotations are incomplete
_LOADER = {
    "batch_size": Annotated[int, Field(ge=1)],
    "multiprocessing_context": Literal["fork", "spawn", "forkserver"] | None,
    "num_workers": Annotated[int, Field(ge=0, le=1024)],
    "prefetch_factor": Annotated[int, Field(ge=1, le=1024)] | None,
    "timeout": Annotated[float, Field(ge=0)],
}


#: arguments of the loader that apply to worker processes only
_WORKERS = ("timeout", "persistent_workers", "prefetch_factor", "multiprocessing_context")


class _DatasetOptions(Configuration):
    """The entries of ``dataset``. Types are strict: "2" is not a number, "no" is not a bool."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    @model_validator(mode="after")
    def _options_of_workers(self) -> _DatasetOptions:
        """Refuse options of worker processes without such processes, before torch does."""
        for key in _WORKERS if not getattr(self, "num_workers", None) else ():
            if getattr(self, key, None):
                raise FieldError(key, "it needs worker processes: set num_workers to 1 or more, or leave it out")
        return self


def _no_object(_: Any) -> Any:
    raise ValueError("an object of Python, which no configuration can hold; leave it out")


#: the type of an argument that exists in Python only
_OBJECT = Annotated[Any, BeforeValidator(_no_object)]


def _scalar(annotation: Any) -> Any:
    """Return the type of an argument of the loader, if a configuration can hold it."""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    words = set(re.findall(r"\w+", text)) - {"typing"}
    return eval(text.replace("typing.", ""), dict(_SCALARS)) if words <= _SCALARS.keys() else _OBJECT


@functools.cache
def dataset_model(name: str | None) -> type[Configuration]:
    """Return the configuration class of the entries of ``dataset``.

    Args:
        name: of an embedded data set; None: a folder or a data set of the hub, with the arguments of both.
    """
    from .data import SOURCES, Dataset, VideoDataset, hub_dataset

    loader = {
        key: _scalar(inspect.signature(DataLoader).parameters[key].annotation) for key in sorted(loader_arguments())
    }
    known = {key: [_LOADER.get(key, kind)] for key, kind in loader.items()}
    for source in (Dataset, VideoDataset, hub_dataset) if name is None else (SOURCES[name],):
        hints = get_type_hints(source.__init__ if inspect.isclass(source) else source)
        for key in inspect.signature(source).parameters:
            if key not in loader and key not in ("folder", "name"):  # shared arguments go to the loader
                known.setdefault(key, []).append(_OBJECT if hints.get(key, Any) is Any else hints[key])
    fields: dict[str, Any] = {key: (functools.reduce(operator.or_, kinds), None) for key, kinds in known.items()}
    return create_model("DatasetOptions", __base__=_DatasetOptions, __module__=__name__, **fields)


def _check_dataset(name: str, values: Any) -> None:
    """Check the entries of ``dataset``.

    Raises:
        ValueError: an entry that neither the loader nor the source has, or of another type.
    """
    from .data import SOURCES

    if isinstance(values, Mapping):
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    part(dataset_model(name if name in SOURCES else None), values)


# -- everything -------------------------------------------------------------------------------------------------------


class TrainingConfig(Configuration):
    """A complete configuration file: a model, a trainer, data, and the periods of samples and checkpoints.

    All periods are counted in training steps of the U-Net that is trained; 0 means never.
    """

    type: str = Field("original", description="original or elucidated")
    imagen: Any = Field(description="arguments of the model")
    trainer: Any = Field(default_factory=dict, validate_default=True, description="arguments of the trainer")
    dataset_name: str = Field("emoji64", description="the embedded data set, a folder, or a data set of the hub")
    dataset: dict[str, Any] = Field(
        default_factory=lambda: {"batch_size": 16, "shuffle": True},
        description="arguments of torch's DataLoader and of the data source, in any order",
    )
    image_label: str | None = Field(None, description="column of a hub data set that holds the images")
    url_label: str | None = Field(None, description="column that holds their URLs, if they must be fetched")
    text_label: str | None = Field(None, description="column of the captions")
    checkpoint_path: str = Field("./imagen.pt", description="written while training and at its end, continued from")
    max_skipped_share: float = Field(0.05, ge=0, le=1, description="stop if a larger fraction of the data is unusable")
    max_batch_size: int | None = Field(None, ge=1, description="largest number of images in memory at once")
    steps: int | list[int | None] | None = Field(
        None, description="total training steps, one number or one per U-Net; the command line takes precedence"
    )
    sample_at_every: int = Field(100, ge=0, description="period of sample images")
    save_at_every: int = Field(1000, ge=0, description="period of checkpoints")
    validate_at_every: int = Field(0, ge=0, description="period of validations, on a fraction held out for it")
    sample_texts: list[str] = Field(default_factory=list, description="captions of the sample images")

    @field_validator("type")
    @classmethod
    def _known_type(cls, value: str) -> str:
        CASCADES[value]
        return value

    @field_validator("imagen", mode="before")
    @classmethod
    def _parse_imagen(cls, value: Any, info: ValidationInfo) -> Any:
        return part(cascade_model(info.data["type"]), value) if "type" in info.data else value

    @field_validator("trainer", mode="before")
    @classmethod
    def _parse_trainer(cls, value: Any) -> Any:
        return part(TrainerOptions, value)

    @field_validator("dataset", mode="before")
    @classmethod
    def _known_dataset(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, Mapping) and isinstance(info.data.get("dataset_name"), str):
            _check_dataset(info.data["dataset_name"], value)
        return value

    @model_validator(mode="after")
    def _one_count_per_unet(self) -> TrainingConfig:
        if isinstance(self.steps, list) and len(self.steps) != len(self.imagen.unets):
            count = len(self.imagen.unets)
            raise FieldError("steps", f"it needs one number for each of the {count} U-Nets, got {self.steps}")
        return self

    def total_steps(self, unet_number: int) -> int | None:
        """Return the number of steps after which this U-Net (1-based) is done, or None if it is not configured."""
        return self.steps[unet_number - 1] if isinstance(self.steps, list) else self.steps

    def split_dataset_arguments(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the entries of ``dataset`` for torch's ``DataLoader``, and those for the data source."""
        known = loader_arguments()
        loader = {"batch_size": 16} | {name: value for name, value in self.dataset.items() if name in known}
        return loader, {name: value for name, value in self.dataset.items() if name not in known}

    def create(self, **trainer_options: Any) -> ImagenTrainer:
        """Build the trainer with a new model. Further options of `ImagenTrainer` override those of the
        configuration."""
        imagen, given = self.imagen.create(), self.trainer.given()
        with _in_trainer(given):
            return ImagenTrainer(imagen, **{**given, **trainer_options})
