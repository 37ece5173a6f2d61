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
SIDECARS = (".txt", ".caption")


def suffix(path: str) -> str:
    return posixpath.splitext(path)[1].lower()
