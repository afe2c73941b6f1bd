"""The JSON schema of a configuration, for editors that complete and check files."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import GenerateJsonSchema, models_json_schema


class _Schema(GenerateJsonSchema):
    """The schema of pydantic, in which a value that JSON cannot describe may be anything."""

    def handle_invalid_for_json_schema(self, *_: Any) -> dict[str, Any]:
        """Return the schema of a type that exists in Python only."""
        return {}


def config_schema() -> dict[str, Any]:
    """Return the schema of `TrainingConfig`, with the models, networks, trainer and data that its parts may be."""
    from ..configs import TrainerOptions, TrainingConfig, cascade_model, dataset_model, unet_model
    from ..data import SOURCES
    from ..imagen import CASCADES
    from ..nn.presets import UNETS

    families = {
        "imagen": [cascade_model(name) for name in CASCADES],
        "unets": [unet_model(name) for name in UNETS],
        "trainer": [TrainerOptions],
        "dataset": [dataset_model(name) for name in (None, *SOURCES.names())],
    }
    models = [TrainingConfig, *(model for family in families.values() for model in family)]
    modes = [(model, "validation") for model in models]
    references, schema = models_json_schema(modes, schema_generator=_Schema)  # type: ignore[arg-type]
    parts = {
        name: {"anyOf": [references[model, "validation"] for model in family]} for name, family in families.items()
    }
    several = {"anyOf": [parts.pop("unets"), {"type": "array", "items": {"anyOf": []}}]}
    several["anyOf"][1]["items"] = several["anyOf"][0]

    def definition(model: Any) -> dict[str, Any]:
        return schema["$defs"][references[model, "validation"]["$ref"].rpartition("/")[2]]

    for model in families["imagen"]:
        definition(model)["properties"]["unets"] = several
    top = definition(TrainingConfig)
    for name, part in parts.items():
        top["properties"][name] |= part
    top["properties"]["$schema"] = {"type": "string"}
    return {"$schema": GenerateJsonSchema.schema_dialect, **top, "$defs": schema["$defs"]}
