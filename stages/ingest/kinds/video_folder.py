"""Folders of videos, each a record, or several where it is long: clips of some seconds each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from omniloom.stages.base import LATER
from omniloom.stages.data.media.limits import MediaError
from omniloom.stages.ingest.files.suffixes import VIDEOS
from omniloom.stages.ingest.kinds.media_folder import MediaFolder, MediaFolderConfig
from omniloom.stages.ingest.rejects import Reject


class VideoFolderConfig(MediaFolderConfig):
    """Videos in folders of any depth, each a record."""

    kind: Literal["video_folder"]
    """Videos in folders of any depth."""
    clip_seconds: float | None = Field(None, gt=0, json_schema_extra=LATER)
    """Cut videos that last longer into clips of so many seconds, each a record; the clips of a video lie in one split.
    By default every video is one record."""


class VideoFolder(MediaFolder):
    config: VideoFolderConfig
    Config = VideoFolderConfig
    suffixes = VIDEOS
    medium = "video"

    def media(self, item: dict) -> Iterator[dict | Reject]:
        """The video as it is, or its clips."""
        seconds = self.config.clip_seconds
        if seconds is None or self._lasts(item["path"]) <= seconds:
            yield from super().media(item)
        else:
            yield from self._clips(item["path"], seconds)

    def _lasts(self, path: str) -> float:
        """Seconds, as the container says; where it says nothing, without end."""
        from omniloom.stages.data.media.clipping import stated_seconds

        with self.root.open(path) as file:
            stated = stated_seconds(file, self.limits)
        return float("inf") if stated is None else stated

    def _clips(self, path: str, seconds: float) -> Iterator[dict | Reject]:
        """A record of each clip. What goes beyond the limits, or is damaged, costs its clip; `limits` are those of a
        clip, however long the video is."""
        from omniloom.stages.data.media.clipping import clips
        from omniloom.stages.ingest import rows

        with self.root.open(path) as file:
            for clip in clips(file, seconds, self.limits):
                try:
                    if clip.damaged > self.limits.max_corrupt_fraction * clip.frames:
                        raise MediaError("corrupt", f"damage reaches {clip.damaged} of {clip.frames} frames")
                    row = rows.media_row(self.medium, clip.data, self.limits)
                except MediaError as error:
                    told = f"the clip from {clip.start:g} s on: {error.message}"
                    yield Reject(error.code, told, part=clip.number)
                    continue
                meta, marked = {**row["meta"], "start": clip.start}, row["synthetic"] or clip.marked
                yield row | {"part": clip.number, "of_file": True, "meta": meta, "synthetic": marked}
