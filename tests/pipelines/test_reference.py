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


def test_everything_that_may_stand_in_a_schema():
    def cell(node: dict) -> tuple[str, str]:
        """What may stand there, and the default."""
        text = reference.markdown({"title": "Root", "properties": {"key": node}, "$defs": {"Inner": {}, "Other": {}}})
        (row,) = [line for line in text.splitlines() if line.startswith("| `key` |")]
        return tuple(part.strip() for part in row.split("|")[2:4])

    def limited(**limits: int) -> str:
        return cell({"type": "number", **limits})[0]

    assert limited(minimum=0, maximum=1) == "number, at least 0, at most 1"
    assert limited(exclusiveMinimum=0, exclusiveMaximum=2) == "number, above 0, below 2"
    whole = {"type": "integer", "exclusiveMinimum": 0}
    assert (
        cell({"type": "array", "items": whole, "minItems": 2})[0] == "list of whole number, above 0, at least 2 items"
    )
    pair = {"type": "array", "prefixItems": [whole, {"type": "string"}]}
    assert cell(pair)[0] == "list of 2: whole number, above 0, text"
    assert cell({"type": "object", "additionalProperties": {"type": "boolean"}})[0] == "mapping of true or false"
    assert cell({"type": "object"})[0] == "mapping" and cell({"type": "array"})[0] == "list"
    assert cell({})[0] == "anything" and cell({"const": "vq"})[0] == '`"vq"`'
    inner, other = {"$ref": "#/$defs/Inner"}, {"$ref": "#/$defs/Other"}
    assert (
        cell({"anyOf": [inner, {"oneOf": [other, inner]}]})[0]
        == "[Inner](#inner) or [Other](#other) or [Inner](#inner)"
    )
    assert cell({"oneOf": [{"type": "string"}, {"type": "string"}, {"type": "null"}]})[0] == "text or null"
    assert cell({"type": "string", "default": "né|"})[1] == '`"né'  # until the bar
    assert cell({"type": "string"})[1] == ""


def test_a_mapping_has_one_section_where_it_is_first_met():
    ref = {name: {"$ref": f"#/$defs/{name}"} for name in ("A", "B", "C")}
    schema = {
        "title": "Root",
        "properties": {
            "one": ref["B"],
            "two": {"type": "array", "items": ref["A"], "default": [ref["C"]]},  # a default leads nowhere
            "three": ref["B"],
        },
        "$defs": {"A": {"properties": {"up": ref["B"]}}, "B": {"description": "Of\n  B."}, "C": {}},
    }
    text = reference.markdown(schema)
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## Root", "## B", "## A"]
    assert "## B\n\nOf B.\n" in text
