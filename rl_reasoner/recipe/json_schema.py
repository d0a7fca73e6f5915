"""The JSON schema of recipes in YAML: what an editor checks and completes them by.

Made from the same pydantic classes that read a recipe, with the short forms that those take in
(`data: problems.jsonl`, `rewards: {math_answer: 1}`). It is next to the shipped recipes as
`recipe.schema.json`; `rl-reasoner list schema` prints it. Knows nothing of torch.
"""

import json
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from rl_reasoner.recipe.environment import EnvironmentSettings
from rl_reasoner.recipe.recipe import Recipe
from rl_reasoner.recipe.tools import ToolSettings

SCHEMA_FILE = "recipe.schema.json"
_NAME: JsonSchemaValue = {"type": "string"}
_NAMES: JsonSchemaValue = {"type": "array", "items": _NAME}
# What stands for a whole part, where its validator takes that in.
_SHORT: dict[type, list[JsonSchemaValue]] = {
    EnvironmentSettings: [_NAME],
    ToolSettings: [_NAME, {**_NAMES, "minItems": 1}],
}


class _Schema(GenerateJsonSchema):
    """pydantic's generator, for what is written in a file instead of what it becomes."""

    def function_before_schema(self, schema: Any) -> JsonSchemaValue:
        """What is taken in before pydantic looks at it: names, lists, bare weights."""
        inner = super().function_before_schema(schema)
        kind = schema["schema"]["type"]
        if kind == "dict":  # reward -> weight
            values = inner["additionalProperties"]
            weights = {**inner, "additionalProperties": {"anyOf": [{"type": "number"}, values]}}
            return {"anyOf": [weights, _NAMES]}
        if kind == "tuple":
            return {"anyOf": [inner["items"], inner]}
        if kind == "literal" and "off" in inner["enum"]:  # what YAML 1.1 reads for it
            return {"enum": [*inner["enum"], False]}
        if kind == "tagged-union" and "mix" in schema["schema"]["choices"]:
            return {"anyOf": [_NAME, inner, {"type": "array"}]}
        if kind in ("tagged-union", "model", "definition-ref"):
            return {"anyOf": [_NAME, inner]}
        return inner

    def model_schema(self, schema: Any) -> JsonSchemaValue:
        """A part of the recipe, or what stands for it: the name of an environment, of tools."""
        part = super().model_schema(schema)
        short = _SHORT.get(schema["cls"], [])
        return {"anyOf": [*short, part]} if short else part

    def field_title_should_be_set(self, schema: Any) -> bool:
        """No titles: they would only be the fields' names again."""
        return False


def recipe_schema() -> dict[str, Any]:
    """The schema (JSON Schema 2020-12) of a recipe file, with every field's description."""
    schema = Recipe.model_json_schema(schema_generator=_Schema)
    for part in schema["$defs"].values():
        if "const" in part.get("properties", {}).get("kind", {}):  # what tells stages apart
            part["required"] = sorted({*part.get("required", ()), "kind"})
    return {"$schema": _Schema.schema_dialect, **schema}


def schema_text() -> str:
    """The schema as the text of `recipe.schema.json`."""
    return json.dumps(recipe_schema(), indent=1, ensure_ascii=False) + "\n"
