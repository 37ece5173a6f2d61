"""Suffixes of file names, as the kinds of sources tell files apart. In small letters, with the dot."""

from __future__ import annotations

import posixpath

IMAGES = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2"),
    *(".avif", ".heic", ".heif", ".tga", ".ico"),
)
VIDEOS = (
    *(".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".gif", ".ts", ".ogv", ".flv", ".wmv"),
    ".3gp",
)
# Files that describe media and stand beside them. Anything else in a media folder is tried.
COMPANIONS = (
    *(".txt", ".caption", ".md", ".rst", ".json", ".jsonl", ".csv", ".tsv", ".yaml", ".yml", ".html", ".htm"),
    *(".xml", ".parquet", ".pdf", ".py", ".sha256", ".md5", ".srt", ".vtt"),
)
TEXTS_BESIDE = (".txt", ".caption")
SIDECARS = (*TEXTS_BESIDE, ".json")


# How files are compressed; the suffix before it says what they hold.
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
_SPELT = {".zstd": ".zst", ".gzip": ".gz", ".bz": ".bz2"}
_SHORT = {".tgz": ".gz", ".tbz2": ".bz2", ".tbz": ".bz2", ".txz": ".xz", ".tzst": ".zst"}  # of .tar.gz and so on
ARCHIVES = (".zip", ".tar")


_ENDINGS = (*COMPRESSED, *_SPELT, *_SHORT)
_OF_COMPRESSED = frozenset(_ENDINGS)


def suffix(path: str) -> str:
    """The suffix in small letters; of a compressed file that of what it holds: .txt of a.txt.gz, .tar of a.tgz."""
    dot = path.rfind(".")
    plain = dot > 0 and path[dot - 1] not in "/." and "/" not in path[dot:]  # nearly always: no other dot decides
    stem, ending = (path[:dot], path[dot:]) if plain else posixpath.splitext(path)
    ending = ending.lower()
    if ending not in _OF_COMPRESSED:
        return ending
    if ending in _SHORT:
        return ".tar"
    return posixpath.splitext(stem)[1].lower() or ending


def compression(path: str) -> str | None:
    """How the file is compressed: the one of `COMPRESSED`; None where it is not."""
    if not path.lower().endswith(_ENDINGS):
        return None
    ending = posixpath.splitext(path)[1].lower()
    ending = _SPELT.get(ending, ending)
    return ending if ending in COMPRESSED else _SHORT.get(ending)
