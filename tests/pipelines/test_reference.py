"""The schema that users read: every key is described, no name is Python's, and docs/config.md is made of it."""

from __future__ import annotations

from pathlib import Path

from omniloom.pipelines import reference
from omniloom.pipelines.config import PipelineConfig

PAGE = Path(__file__).parents[2] / "docs" / "config.md"


def mappings() -> dict[str, dict]:
    schema = PipelineConfig.model_json_schema()
    return {"PipelineConfig": schema, **schema["$defs"]}


def test_every_key_is_described():
    properties = [
        (name, key, node) for name, mapping in mappings().items() for key, node in mapping.get("properties", {}).items()
    ]
    assert len(properties) > 300
    assert not [f"{name}.{key}" for name, key, node in properties if not node.get("description", "").strip()]


def test_each_mapping_has_a_name_of_its_own():
    names = set(mappings())
    assert {"TrainConfig", "TokenizerStageConfig", "EvaluateConfig", "PretokenizeConfig", "IngestConfig"} <= names
    assert not [name for name in names if name == "Config" or "__" in name]


def test_the_reference_is_what_the_schema_says():
    """`omniloom schema --markdown > docs/config.md` makes it anew."""
    assert PAGE.read_text(encoding="utf-8") == reference.markdown(PipelineConfig.model_json_schema()) + "\n"


def test_the_reference_of_a_small_schema():
    schema = {
        "title": "Root",
        "description": "The root.",
        "required": ["name"],
        "properties": {
            "name": {"type": "string", "description": "A name."},
            "inner": {
                "anyOf": [{"$ref": "#/$defs/Inner"}, {"type": "null"}],
                "default": None,
                "description": "In | it.",
            },
        },
        "$defs": {
            "Inner": {
                "properties": {
                    "sizes": {"type": "array", "items": {"type": "integer", "minimum": 1}, "default": [4]},
                    "kind": {"enum": ["a", "b"], "default": "a", "description": "Which."},
                }
            },
            "Unused": {"properties": {}},
        },
    }
    text = reference.markdown(schema)
    assert "| `name` | text | required | A name. |" in text
    assert "| `inner` | [Inner](#inner) or null | `null` | In \\| it. |" in text
    assert "| `sizes` | list of whole number, at least 1 | `[4]` |  |" in text
    assert '| `kind` | `"a"`, `"b"` | `"a"` | Which. |' in text
    assert "Unused" not in text
