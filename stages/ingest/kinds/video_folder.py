"""Folders of videos."""

from __future__ import annotations

from typing import Literal

from omniloom.stages.ingest.files.suffixes import VIDEOS
from omniloom.stages.ingest.kinds.media_folder import MediaFolder, MediaFolderConfig


class VideoFolderConfig(MediaFolderConfig):
    """Videos in folders of any depth, each a record."""

    kind: Literal["video_folder"]
    """Videos in folders of any depth."""


class VideoFolder(MediaFolder):
    Config = VideoFolderConfig
    suffixes = VIDEOS
    medium = "video"
