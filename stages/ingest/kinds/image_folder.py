"""Folders of pictures."""

from __future__ import annotations

from typing import Literal

from omniloom.stages.ingest.files.suffixes import IMAGES
from omniloom.stages.ingest.kinds.media_folder import MediaFolder, MediaFolderConfig


class ImageFolderConfig(MediaFolderConfig):
    """Pictures in folders of any depth, each a record. Of an animation the first frame is taken."""

    kind: Literal["image_folder"]
    """Pictures in folders of any depth."""


class ImageFolder(MediaFolder):
    Config = ImageFolderConfig
    suffixes = IMAGES
    medium = "image"
