"""Repositories of datasets on the Hugging Face hub: which of their files belong to a subset and a split.

In: the paths of a folder, its README.md, and a config's `subset` and `split`. Out: the paths of data files. The rules
are those of the `datasets` library: `configs` in the README's front matter, else names of files and folders.
"""

from __future__ import annotations

import fnmatch
import posixpath
import re
from collections.abc import Iterable

import yaml

_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "dev", "val"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_SHARD = re.compile(r"(?:^|.*-)(\w+(?:\.\w+)*)-\d{5}-of-\d{5}")
# Files of the libraries that hold no rows.
_NOTES = ("dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json", "README.md")


def is_note(path: str) -> bool:
    """Whether a file is about the others, or a cache of the library's."""
    name = posixpath.basename(path)
    return name in _NOTES or name.startswith(("cache-", "indices-"))


def is_shard(path: str) -> bool:
    """Whether a file has the name that the library gives shards."""
    return bool(_SHARD.match(posixpath.basename(path)))


def split_of(path: str) -> str | None:
    """The split that a path names: "train", "validation", "test" under one of their usual names, or that of a shard
    (`name-00000-of-00002`); None where it names none."""
    folders, name = posixpath.split(path)
    if (match := _SHARD.match(name)) and match.group(1) != "data":
        return _SPLITS.get(match.group(1).lower(), match.group(1))
    for part in (posixpath.splitext(name)[0], *reversed(folders.split("/"))):
        for word in re.split(r"[^A-Za-z]+", part):
            if word.lower() in _SPLITS:
                return _SPLITS[word.lower()]
    return None


def named_split(split: str) -> str:
    return _SPLITS.get(split.lower(), split)


def snapshot(paths: Iterable[str], revision: str | None) -> str:
    """The folder of the files, where `paths` are those of a repository in the hub's cache (blobs, refs, snapshots): the
    snapshot of `revision`, or the only one. Empty for any other folder; ValueError where it is a choice."""
    parts = [path.split("/") for path in paths]
    if not any(part[0] == "blobs" for part in parts):
        return ""
    revisions = sorted({part[1] for part in parts if part[0] == "snapshots" and len(part) > 2})
    if revision in revisions:
        return f"snapshots/{revision}"
    if len(revisions) > 1:
        raise ValueError(f"it holds the snapshots {', '.join(revisions)}; set uri to one of them")
    return f"snapshots/{revisions[0]}" if revisions else ""


class Card:
    """What a README.md says of the data files: {subset: [(split, pattern)]}."""

    def __init__(self, text: str):
        self.subsets: dict[str, list[tuple[str | None, str]]] = {}
        self.default: str | None = None
        match = re.match(r"---\s*\n(.*?)\n---\s*(?:\n|$)", text, re.DOTALL)
        try:
            front = yaml.safe_load(match.group(1)) if match else None
        except yaml.YAMLError:
            front = None
        configs = front.get("configs") if isinstance(front, dict) else None
        for config in configs if isinstance(configs, list) else ():
            if isinstance(config, dict) and config.get("data_files"):
                name = str(config.get("config_name", "default"))
                folder = str(config.get("data_dir") or "")
                self.subsets[name] = [
                    (split, posixpath.join(folder, p)) for split, p in _patterns(config["data_files"])
                ]
                if config.get("default") is True or name == "default":
                    self.default = name


def _patterns(data_files: object) -> list[tuple[str | None, str]]:
    if isinstance(data_files, str):
        return [(None, data_files)]
    if isinstance(data_files, dict):
        data_files = [data_files] if "path" in data_files else [{"split": k, "path": v} for k, v in data_files.items()]
    found: list[tuple[str | None, str]] = []
    for entry in data_files if isinstance(data_files, list) else ():
        if isinstance(entry, str):
            found.append((None, entry))
        elif isinstance(entry, dict):
            paths = entry.get("path")
            split = str(entry["split"]) if entry.get("split") else None
            found += [(split, str(path)) for path in (paths if isinstance(paths, list) else [paths]) if path]
    return found


def chosen(paths: list[str], card: Card, subset: str | None, split: str | None) -> list[str]:
    """The paths of a subset and a split; of the default subset, and of all splits, where none is named. ValueError with
    the choices where there is none of that name, or no default: its first word is the option."""
    if card.subsets:
        found = _by_card(paths, card, subset)
    else:
        found = {path: split_of(path) for path in paths if subset is None or subset in path.split("/")[:-1]}
        if not found and paths:
            folders = sorted({folder for path in paths for folder in path.split("/")[:-1]})
            raise ValueError(f"subset: no folder is called {subset!r}; the folders are {', '.join(folders) or 'none'}")
    if split is None:
        return list(found)
    kept = [path for path, of in found.items() if of is not None and named_split(of) == named_split(split)]
    if not kept and found:
        splits = sorted({of for of in found.values() if of})
        raise ValueError(
            f"split: no file is of {split!r}; the splits are {', '.join(splits) or 'not named by the files'}"
        )
    return kept


def _by_card(paths: list[str], card: Card, subset: str | None) -> dict[str, str | None]:
    """Path -> split of a subset's files, as the card lists them."""
    name = subset or card.default or (next(iter(card.subsets)) if len(card.subsets) == 1 else None)
    names = ", ".join(card.subsets)
    if name is None:
        raise ValueError(f"subset: the README names {names}; set subset to one of them")
    if name not in card.subsets:
        raise ValueError(f"subset: the README names no {name!r}; it names {names}")
    return {
        path: split or split_of(path)
        for path in paths
        for split, pattern in card.subsets[name][::-1]
        if fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(path, pattern.replace("**/", ""))
    }
