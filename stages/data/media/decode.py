"""Media: the one door to encoded images and videos, and nothing that a file holds can do harm on the way.

In: the bytes of a file and `Limits`. Out: uint8 RGB arrays, (H, W, 3) for an image, (T, H, W, 3) for a video.
A file that cannot be used raises `MediaError` with a stable reason code:

    empty, too_large, too_small, too_thin, too_long, too_costly, not_an_image, not_a_video, no_video_stream,
    unsupported, truncated, corrupt

What a model of this project makes carries a mark: the PNG text chunk or the mp4 comment `omniloom`.
"""

from __future__ import annotations

from omniloom.stages.data.media.images import ImageInfo, decode_image, decode_image_to, encode_png, probe_image
from omniloom.stages.data.media.limits import DEFAULT_LIMITS, MARK, NO_LIMITS, Limits, MediaError
from omniloom.stages.data.media.scaling import resize, resize_center_crop
from omniloom.stages.data.media.videos import VideoInfo, decode_video, encode_mp4, probe_video

__all__ = [
    "DEFAULT_LIMITS",
    "MARK",
    "NO_LIMITS",
    "ImageInfo",
    "Limits",
    "MediaError",
    "VideoInfo",
    "decode_image",
    "decode_image_to",
    "decode_video",
    "encode_mp4",
    "encode_png",
    "probe_image",
    "probe_video",
    "resize",
    "resize_center_crop",
]
