"""`make mutants`: would the tests notice a broken product? Mistakes of one line, drawn by a seed, are made one at a
time in a copy of the tree, and the fast tests that run the line are run. Out: a score for each module of
`modules.toml`, and in `build/mutants/survivors.txt` the mistakes that no test noticed.

What a person has found to change nothing stands in `equivalent.toml` with the reason, and counts for neither side.
A run that was stopped goes on where it was while the tree stays the same; `--survivors` tries only those again that
the run before left, on the tree as it is now.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import time
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from places import Mutant, drawn
from warm import Baseline, Tree

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WORK = ROOT / "build" / "mutants"
TREE = WORK / "tree"
FOLDERS = ("pipelines", "stages", "models", "infra")
_TESTS_SECONDS = 60.0  # of tests a mistake gets, by the baseline's times, the quickest first
_CPU_ALLOWED = (10.0, 3.0)  # seconds, and times what its tests take unbroken
_WALL_ALLOWED = (40.0, 10.0)  # the same for each test


@dataclass(frozen=True)
class Module:
    name: str
    files: tuple[str, ...]
    tests: tuple[str, ...]


def modules() -> list[Module]:
    table = tomllib.loads((HERE / "modules.toml").read_text())
    return [Module(name, _matching(row["files"]), _matching(row["tests"])) for name, row in table.items()]


def _matching(patterns: Sequence[str]) -> tuple[str, ...]:
    found = [sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(pattern)) for pattern in patterns]
    for pattern, paths in zip(patterns, found):
        if not paths:
            raise SystemExit(f"modules.toml: no file is called {pattern}")
    return tuple(dict.fromkeys(path for paths in found for path in paths))


def equivalents() -> dict[tuple[str, str, str], str]:
    """Reasons by the mutant's name."""
    rows = tomllib.loads((HERE / "equivalent.toml").read_text()).get("mutant", [])
    return {(row["file"], row["was"], row["now"]): row["why"] for row in rows}


class Results:
    """What was seen, a line of JSON a mutant, in a file that outlives a run that is stopped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.seen = {tuple(row["key"]): row["noticed"] for row in map(json.loads, lines)}

    def add(self, mutant: Mutant, noticed: str) -> None:
        self.seen[_key(mutant)] = noticed
        with self.path.open("a") as file:
            file.write(json.dumps({"key": _key(mutant), "noticed": noticed}) + "\n")

    def keep(self, only_noticed: bool) -> None:
        self.seen = {key: noticed for key, noticed in self.seen.items() if only_noticed and noticed}
        self.path.write_text(
            "".join(json.dumps({"key": key, "noticed": noticed}) + "\n" for key, noticed in self.seen.items())
        )


def _key(mutant: Mutant) -> tuple[str, str, str]:
    return mutant.file, mutant.operator, hashlib.sha256(mutant.code.encode()).hexdigest()


def copied_tree(copy: Path) -> str:
    """The working tree's files in the folder `copy`, made anew, and their digest.

    The package `omniloom` of the copy has its four folders as links: an editable install would give the checkout's.
    """
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    digest = hashlib.sha256()
    shutil.rmtree(copy, ignore_errors=True)
    for name in sorted(filter(None, listed.split("\0"))):
        source = ROOT / name
        if source.is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copy / name)
            digest.update(f"{name}\0{hashlib.sha256(source.read_bytes()).hexdigest()}\n".encode())
    for folder in FOLDERS:
        (copy / "omniloom" / folder).symlink_to(copy / folder)
    beside = copy.parent / "shared"  # reference vectors and the sample corpus, which tests look for beside the tree
    if not beside.exists() and (ROOT.parent / "shared").exists():
        beside.symlink_to(ROOT.parent / "shared")
    return digest.hexdigest()


def baseline_of(tree: Tree, module: Module, digest: str) -> Baseline:
    path = WORK / f"baseline-{module.name}.json"
    if path.exists() and (kept := json.loads(path.read_text()))["digest"] == digest:
        lines = {file: {int(n): tests for n, tests in rows.items()} for file, rows in kept["lines"].items()}
        return Baseline(kept["seconds"], lines, kept["imported"])
    baseline = tree.baseline(module.tests, module.files)
    path.write_text(json.dumps({"digest": digest, **asdict(baseline)}))
    return baseline


def tried(tree: Tree, module: Module, mutants: Sequence[Mutant], results: Results, digest: str) -> None:
    waiting = [mutant for mutant in mutants if _key(mutant) not in results.seen]
    if not waiting:
        return
    baseline = baseline_of(tree, module, digest)
    baseline.preload()
    for n, mutant in enumerate(waiting, 1):
        tests, began = baseline.of(mutant.file, mutant.lines, _TESTS_SECONDS), time.monotonic()
        seconds = [baseline.seconds[test] for test in tests]
        cpu = _CPU_ALLOWED[0] + _CPU_ALLOWED[1] * sum(seconds)
        wall = _WALL_ALLOWED[0] + _WALL_ALLOWED[1] * max(seconds, default=0)
        noticed = tree.noticed(mutant.file, mutant.code, tests, cpu, wall) if tests else ""
        results.add(mutant, noticed)
        print(
            f"{module.name} {n}/{len(waiting)} {mutant.file}:{mutant.lines[0] if mutant.lines else 'import'} "
            f"{noticed or f'NOT NOTICED by {len(tests)} tests'} ({time.monotonic() - began:.0f} s)",
            flush=True,
        )


def report(found: dict[str, list[Mutant]], results: Results) -> None:
    reasons, rows, survivors = equivalents(), [], []
    for name, mutants in found.items():
        count = Counter()
        for mutant in mutants:
            noticed = results.seen[_key(mutant)]
            kind = "noticed" if noticed else "equivalent" if mutant.name in reasons else "survived"
            count[kind] += 1
            count["time"] += noticed in ("time", "death")
            if kind == "survived":
                survivors.append(
                    f"## {name}: {mutant.operator}\nwas = {json.dumps(mutant.was)}\n"
                    f"now = {json.dumps(mutant.now)}\n{mutant.diff(TREE)}\n"
                )
        rows.append((name, count))
    rows.append(("all", sum((count for _, count in rows), Counter())))
    print(f"\n{'module':12}{'made':>6}{'noticed':>9}{'(by time)':>11}{'equivalent':>12}{'survived':>10}{'score':>9}")
    for name, count in rows:
        decided = count["noticed"] + count["survived"]
        share = f"{count['noticed'] / decided:.1%}" if decided else "-"
        print(
            f"{name:12}{decided + count['equivalent']:6}{count['noticed']:9}{count['time']:11}"
            f"{count['equivalent']:12}{count['survived']:10}{share:>9}"
        )
    (WORK / "survivors.txt").write_text("\n".join(survivors))
    print(f"survivors: {(WORK / 'survivors.txt').relative_to(ROOT)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--count", type=int, default=350, help="mutants, evenly over the modules")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", metavar="MODULE", help="modules of modules.toml")
    parser.add_argument("--survivors", action="store_true", help="keep what was noticed, try the others again")
    args = parser.parse_args()
    known = modules()
    if unknown := set(args.only or ()) - {module.name for module in known}:
        parser.error(f"--only: no module is called {', '.join(sorted(unknown))}")
    chosen = [module for module in known if not args.only or module.name in args.only]
    WORK.mkdir(parents=True, exist_ok=True)
    digest, results = copied_tree(TREE), Results(WORK / "results.jsonl")
    last = WORK / "digest"
    if args.survivors or not last.exists() or last.read_text() != digest:
        results.keep(only_noticed=args.survivors)
    last.write_text(digest)
    tree, found = Tree(TREE, WORK / "last.log"), {}
    for i, module in enumerate(chosen):
        share = args.count // len(chosen) + (i < args.count % len(chosen))
        found[module.name] = drawn(TREE, module.files, share, args.seed)
        tried(tree, module, found[module.name], results, digest)
    report(found, results)


if __name__ == "__main__":
    main()
