"""The JSON Schema of the config file, for editors and for whoever generates configs.

It is pydantic's, but for what holds of a file and not of the settings made from it: a number or a word may be given as
`${VARIABLE}`, an upstream has either `url` or `urls`, and a replica may be its URL alone.
"""

from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from gateway.config.settings import Settings

_VARIABLE = {"type": "string", "pattern": r"\$\{"}


class _WithVariables(GenerateJsonSchema):
    def int_schema(self, schema: core_schema.IntSchema) -> JsonSchemaValue:
        return _or_variable(super().int_schema(schema))

    def float_schema(self, schema: core_schema.FloatSchema) -> JsonSchemaValue:
        return _or_variable(super().float_schema(schema))

    def bool_schema(self, schema: core_schema.BoolSchema) -> JsonSchemaValue:
        return _or_variable(super().bool_schema(schema))

    def literal_schema(self, schema: core_schema.LiteralSchema) -> JsonSchemaValue:
        return _or_variable(super().literal_schema(schema))


def _or_variable(schema: JsonSchemaValue) -> JsonSchemaValue:
    return {"anyOf": [schema, _VARIABLE]}


def schema() -> dict[str, Any]:
    """JSON Schema, draft 2020-12, with every setting's description and default."""
    made = Settings.model_json_schema(schema_generator=_WithVariables)
    upstream = made["$defs"]["Upstream"]
    upstream["oneOf"] = [{"required": ["url"]}, {"required": ["urls"]}]
    upstream["properties"]["urls"]["items"] = {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/Replica"}]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made, "title": "gateway.yaml"}
