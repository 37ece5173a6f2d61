"""What the catalog's commands print. In: the dictionaries that the catalog gives. Out: lines and tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml
from rich.markup import escape
from rich.table import Table

from omniloom.pipelines.tables import shown_metrics, shown_size

_FILES = 12
_COLUMNS = {
    "artifacts": ("stage", "fingerprint", "pipeline", "ended", "size", "used by", "figures"),
    "runs": ("run", "pipeline", "status", "started", "ended", "stages"),
    "models": ("model", "aliases", "training", "artifact"),
}


def table(kind: str, rows: list[dict[str, Any]]) -> Table:
    found = Table(title=f"{kind} ({len(rows)})", title_justify="left", box=None, pad_edge=False)
    for column in _COLUMNS[kind]:
        found.add_column(column, overflow="fold")
    for row in rows:
        found.add_row(*(escape(text) for text in _ROWS[kind](row)))
    return found


def _artifact_row(row: dict[str, Any]) -> tuple[str, ...]:
    used, figures = ", ".join(row["used_by"]) or "-", shown_metrics(row["metrics"], 2)
    facts = row["stage"], row["fingerprint"][:12], row["pipeline"] or "-", row["ended"], shown_size(row["bytes"])
    return (*facts, used, figures)


def _run_row(row: dict[str, Any]) -> tuple[str, ...]:
    stages = ", ".join(f"{name} {facts['status']}" for name, facts in row["stages"].items()) or "-"
    return row["id"], row["pipeline"], row["status"], row["started"], row.get("ended") or "-", stages


def _model_row(row: dict[str, Any]) -> tuple[str, ...]:
    return row["uri"], ", ".join(row["aliases"]) or "-", row["fingerprint"][:12], row["artifact"]


_ROWS = {"artifacts": _artifact_row, "runs": _run_row, "models": _model_row}


def artifact(told: dict[str, Any]) -> Iterator[str]:
    yield f"{told['stage']} {told['fingerprint']}"
    yield f"artifact: {told['artifact']} ({shown_size(told['bytes'])}, {len(told['files'])} files)"
    if told["damaged"]:
        yield f"damaged:  {', '.join(told['damaged'][:5])}"
    times = told["times"]
    by = f"the pipeline {told.get('pipeline')}, run {told.get('run')}"
    yield f"made:     {times['ended']} in {times['seconds']:.0f} s, by {by}"
    yield f"used by:  {', '.join(told['used_by']) or 'no pipeline now'}"
    yield f"stage:    version {told['version']}; code {_code(told.get('code'))}"
    yield "packages: " + ", ".join(f"{name} {number}" for name, number in (told.get("packages") or {}).items())
    if told.get("mlflow_run_id"):
        yield f"MLflow:   run {told['mlflow_run_id']}"
    for stage, fingerprint in told["inputs"].items():
        yield f"read:     {stage} {fingerprint}"
    if facts := told.get("sources"):
        of = f"{facts['files']:,} files of its sources, {shown_size(facts['bytes'])}"
        yield f"read:     {of}, listing {facts['digest'][:12]}"
    for field, facts in (told.get("outside") or {}).items():
        yield f"read:     {field}: {facts['uri']} ({shown_size(facts['bytes'])})"
    for name in told["made_from_it"]:
        yield f"made of it: {name}"
    if told["metrics"]:
        yield "figures:"
        yield from (f"  {name}: {_value(value)}" for name, value in told["metrics"].items())
    yield "config:"
    text = yaml.safe_dump(told["config"], sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)
    yield from (f"  {line}" for line in text.splitlines())
    yield "files:"
    for entry in told["files"][:_FILES]:
        yield f"  {entry['path']} ({shown_size(entry['bytes'])}, sha256 {entry['sha256'][:12]})"
    if len(told["files"]) > _FILES:
        yield f"  and {len(told['files']) - _FILES} more (--json)"


def run(told: dict[str, Any]) -> Iterator[str]:
    yield f"run {told['id']} of {told['pipeline']}: {told['status']}"
    yield f"started:  {told['started']}; ended: {told.get('ended') or '-'}"
    for name, facts in told["stages"].items():
        error = f": {facts['error']}" if facts.get("error") else ""
        yield f"{name}: {facts['status']} {facts.get('fingerprint', '')}{error}".rstrip()
    for name, fingerprint in (told.get("artifacts") or {}).items():
        if name not in told["stages"]:
            yield f"{name}: used {fingerprint}"


def _code(code: Any) -> str:
    if isinstance(code, dict):
        return ", ".join(f"{name} {_value(value)}" for name, value in code.items())
    return str(code or "unknown")


def _value(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)


# ---- lineage ----


def graph(found: dict[str, Any]) -> Iterator[str]:
    """Two trees from the artifact: up to what it came from, down to what was made from it. What several lead to is
    drawn once."""
    nodes = {node["id"]: node for node in found["nodes"]}
    up: dict[str, list[tuple[str, str]]] = {}
    down: dict[str, list[tuple[str, str]]] = {}
    for edge in found["edges"]:
        up.setdefault(edge["to"], []).append((edge["from"], edge["role"]))
        down.setdefault(edge["from"], []).append((edge["to"], edge["role"]))
    yield _node(nodes[found["root"]])
    for title, near in (("came from:", up), ("was made into:", down)):
        if near.get(found["root"]):
            yield title
            yield from _branches(found["root"], near, nodes, set(), "  ")


def _branches(
    start: str, near: dict[str, list[tuple[str, str]]], nodes: dict[str, dict], seen: set[str], indent: str
) -> Iterator[str]:
    for name, role in near.get(start, ()):
        note = f" ({role})" if role not in ("input", "sources", "registered") else ""
        again = name in seen and bool(near.get(name))
        yield f"{indent}{_node(nodes[name])}{note}{' (see above)' if again else ''}"
        if not again:
            seen.add(name)
            yield from _branches(name, near, nodes, seen, indent + "  ")


def _node(node: dict[str, Any]) -> str:
    if node["kind"] == "model":
        return node["id"] + "".join(f" @{alias}" for alias in node["aliases"])
    if node["kind"] == "sources":
        names = ", ".join(node["names"])
        return f"sources {names}: {node['files']:,} files, {shown_size(node['bytes'])}"
    if node["kind"] == "file":
        return f"file {node['uri']} ({shown_size(node['bytes'])})"
    if not node["there"]:
        return f"{node['stage']} {node['fingerprint'][:12]}, gone"
    facts = f"{shown_size(node['bytes'])}, {node['ended']}, {node['pipeline']}"
    return f"{node['stage']} {node['fingerprint'][:12]} ({facts})"


# ---- differences ----


def differences(found: dict[str, Any]) -> Iterator[str]:
    for row in found["stages"]:
        what = "the same content" if row["same"] else "other content"
        yield f"{row['stage']}: {row['a'][:12]} -> {row['b'][:12]}, {what}"
        for part in ("config", "version", "inputs", "sources", "outside", "code", "packages"):
            for change in row[part]:
                name = f"{part} {change['field']}".strip()
                yield f"  {name}: {_short(change['a'])} -> {_short(change['b'])}"
        for change in row["metrics"]:
            more = f" ({change['more']:+.4g})" if change["more"] is not None else ""
            yield f"  {change['field']}: {_value(change['a'])} -> {_value(change['b'])}{more}"
    for side, names in found["only_in"].items():
        if names:
            yield f"only in {found[side]}: {', '.join(names)}"
    if found["same"]:
        yield "no difference in content"


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


# ---- garbage and copies ----


def garbage(found: dict[str, Any], deleted: bool) -> Iterator[str]:
    for row in found["garbage"]:
        what = {"replaced": ", put aside by a forced run", "leftover": ", left behind by a deletion"}
        done = " deleted" if row["deleted"] else " stays: a run uses or makes it" if deleted else ""
        made = f", {row['ended']}, {row['pipeline']}" if row["ended"] else ""
        which = f"{row['stage']} {row['fingerprint'][:12]}: {shown_size(row['bytes'])}"
        yield f"{which}{made}{what.get(row['kind'], '')}{done}"
    for row in found["unfinished"]:
        yield f"unfinished: {row['stage']} {row['fingerprint'][:12]}: {shown_size(row['bytes'])}, a run goes on from it"
    yield f"{len(found['kept'])} artifacts stay (--json says why each does)"
    if deleted:
        yield f"deleted: {shown_size(found['deleted_bytes'])}"
    else:
        yield f"would go: {shown_size(found['bytes'])}; nothing was deleted" + (
            ", --yes deletes it" if found["garbage"] else ""
        )


def copied(rows: list[dict[str, Any]]) -> Iterator[str]:
    for row in rows:
        what = "copied" if row["copied"] else "is there already"
        yield f"{row['stage']} {row['fingerprint'][:12]}: {what}: {row['artifact']} ({shown_size(row['bytes'])})"
