"""The config reference, docs/config.md: every key with what may stand there, its default and what it does. In: the JSON
Schema of the config. Out: Markdown.
"""

from __future__ import annotations

import json

_WORDS = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "null": "null",
    "object": "mapping",
    "array": "list",
}
_LIMITS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "minItems": "at least {} items",
}
_HEAD = """# Config reference

Made by `omniloom schema --markdown`. A pipeline's YAML file is a [PipelineConfig](#pipelineconfig); each section below
is a mapping with its keys. A mapping that is left out has the defaults of its own keys.
"""


def markdown(schema: dict) -> str:
    """A section for the root and one for every mapping that it leads to, in the order in which they are met."""
    sections, waiting = [_HEAD], [schema["title"]]
    definitions = {schema["title"]: schema, **schema["$defs"]}
    for name in waiting:
        mapping = definitions[name]
        sections.append(_section(name, mapping))
        waiting += [
            other for other in dict.fromkeys(_references(mapping.get("properties", {}))) if other not in waiting
        ]
    return "\n".join(sections)


def _section(name: str, mapping: dict) -> str:
    told = _line(mapping.get("description", ""))
    lines = [f"## {name}", "", *([told, ""] if told else [])]
    if rows := mapping.get("properties"):
        lines += ["| key | what may stand there | default | |", "|---|---|---|---|"]
        required = mapping.get("required", [])
        for key, node in rows.items():
            default = f"`{_value(node['default'])}`" if "default" in node else "required" if key in required else ""
            lines.append(f"| `{key}` | {_kind(node)} | {default} | {_line(node.get('description', ''))} |")
        lines.append("")
    return "\n".join(lines)


def _kind(node: dict) -> str:
    if "$ref" in node:
        name = _named(node)
        return f"[{name}](#{name.lower()})"
    if "const" in node:
        return f"`{_value(node['const'])}`"
    if "enum" in node:
        return ", ".join(f"`{_value(value)}`" for value in node["enum"])
    if alternatives := [*node.get("anyOf", []), *node.get("oneOf", [])]:
        return " or ".join(dict.fromkeys(_kind(alternative) for alternative in alternatives))
    kind = _WORDS.get(node.get("type", ""), "anything")
    if isinstance(node.get("prefixItems"), list):
        kind = f"list of {len(node['prefixItems'])}: {', '.join(_kind(item) for item in node['prefixItems'])}"
    elif isinstance(node.get("items"), dict):
        kind = f"list of {_kind(node['items'])}"
    elif isinstance(node.get("additionalProperties"), dict):
        kind = f"mapping of {_kind(node['additionalProperties'])}"
    limits = [words.format(_value(node[name])) for name, words in _LIMITS.items() if name in node]
    return ", ".join([kind, *limits])


def _references(node: object) -> list[str]:
    """The names of the mappings that a part of the schema leads to."""
    if isinstance(node, list):
        return [name for item in node for name in _references(item)]
    if not isinstance(node, dict):
        return []
    here = [_named(node)] if "$ref" in node else []
    return here + [name for key, value in node.items() if key != "default" for name in _references(value)]


def _named(node: dict) -> str:
    return node["$ref"].rsplit("/", 1)[-1]


def _line(text: str) -> str:
    """A description in one cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def _value(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
