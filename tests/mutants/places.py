"""Which one-line mistakes there are to make in a file, and which of them a seed draws. In: source text. Out: `Mutant`s.

The mistakes are those of cosmic-ray's operators (an operator or a comparison replaced, a number moved by one, a
condition negated, a loop without rounds, a decorator removed, ...). A place in the source can be mutated in several
ways, an arithmetic operator in eleven: places are drawn first and then one way for each, so that arithmetic does not
crowd out the rest. Annotations are never evaluated (`from __future__ import annotations`) and are left alone.
"""

from __future__ import annotations

import ast
import difflib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

Position = tuple[int, int]  # line from 1, column from 0


@dataclass(frozen=True)
class Mutant:
    """One mistake in one file.

    file      path under the root
    lines     of the source that have to run for the mistake to matter; empty where it acts when the file is imported
    code      the whole file with the mistake
    was, now  the changed lines without their indentation: with the file they name the mistake wherever it moves to
    """

    file: str
    operator: str
    lines: tuple[int, ...]
    code: str
    was: str
    now: str

    @property
    def name(self) -> tuple[str, str, str]:
        return self.file, self.was, self.now

    def diff(self, root: Path) -> str:
        source = (root / self.file).read_text()
        names = {"fromfile": self.file, "tofile": self.file, "lineterm": "", "n": 2}
        return "\n".join(difflib.unified_diff(source.splitlines(), self.code.splitlines(), **names))


@dataclass(frozen=True)
class _Way:
    operator: str
    occurrence: int


def drawn(root: Path, files: Sequence[str], count: int, seed: int) -> list[Mutant]:
    """`count` mutants (all, where there are fewer places), evenly over the files."""
    rng = random.Random(f"{seed}:{','.join(files)}")
    streams = [_stream(file, (root / file).read_text(), seed) for file in rng.sample(list(files), len(files))]
    found: list[Mutant] = []
    while streams and len(found) < count:
        for stream in list(streams):
            mutant = next(stream, None)
            if mutant is None:
                streams.remove(stream)
            elif len(found) < count:
                found.append(mutant)
    return found


def _stream(file: str, source: str, seed: int) -> Iterator[Mutant]:
    """The file's places in a drawn order, each mutated in one drawn way."""
    rng, places = random.Random(f"{seed}:{file}"), _places(source)
    for position in rng.sample(sorted(places), len(places)):
        way = rng.choice(places[position])
        code = _mutated(source, way)
        if not _compiles(code):  # `if not known := ...`: no mistake that anybody could run
            continue
        was, now = _changed(source, code)
        yield Mutant(file, way.operator.removeprefix("core/"), _lines(ast.parse(source), position[0]), code, was, now)


def _operators() -> Iterator[tuple[str, object]]:
    from cosmic_ray.plugins import get_operator, operator_names

    for name in operator_names():
        operator = get_operator(name)
        if not operator.arguments():  # those with arguments are about variables that a config names
            yield name, operator()


def _places(source: str) -> dict[Position, list[_Way]]:
    from cosmic_ray.ast import ast_nodes, get_ast

    nodes, spared = list(ast_nodes(get_ast(source))), _annotations(ast.parse(source))
    places: dict[Position, list[_Way]] = {}
    for name, operator in _operators():
        starts = [start for node in nodes for start, _ in operator.mutation_positions(node)]
        for occurrence, start in enumerate(starts):
            if not any(begin <= start < stop for begin, stop in spared):
                places.setdefault(start, []).append(_Way(name, occurrence))
    return places


def _mutated(source: str, way: _Way) -> str:
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    return mutate_code(source, get_operator(way.operator)(), way.occurrence)


def _compiles(code: str) -> bool:
    try:
        ast.parse(code)
    except SyntaxError:
        return False
    return True


def _changed(source: str, code: str) -> tuple[str, str]:
    lines = list(difflib.ndiff(source.splitlines(), code.splitlines()))
    return tuple(" ".join(" ".join(line[2:] for line in lines if line[0] == sign).split()) for sign in "-+")


def _annotations(tree: ast.AST) -> list[tuple[Position, Position]]:
    """Spans (begin, stop) of annotations."""
    found = []
    for node in ast.walk(tree):
        for name in ("annotation", "returns"):
            part = getattr(node, name, None)
            if part is not None:
                # ast counts columns in bytes; the sources are ASCII where annotations stand.
                found.append(((part.lineno, part.col_offset), (part.end_lineno, part.end_col_offset)))
    return found


def _lines(tree: ast.AST, line: int) -> tuple[int, ...]:
    """Lines of the innermost statement that holds `line`, its body apart; () outside of functions' bodies."""
    inside, statement = None, None
    nodes = [tree]
    while nodes:
        node = nodes.pop()
        for child in ast.iter_child_nodes(node):
            first = (
                min([child.lineno, *(d.lineno for d in getattr(child, "decorator_list", []))])
                if hasattr(child, "lineno")
                else None
            )
            if first is not None and not first <= line <= child.end_lineno:
                continue
            if isinstance(child, ast.stmt):
                statement = child
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    inside = node
            nodes.append(child)
    if inside is None or statement is None:
        return ()
    body = getattr(statement, "body", None)
    stop = body[0].lineno - 1 if isinstance(body, list) and body else statement.end_lineno
    return tuple(range(statement.lineno, max(stop, statement.lineno) + 1))
