"""Media: the one door to encoded images and videos, and nothing that a file holds can do harm on the way.

In: the bytes of a file and `Limits`. Out: uint8 RGB arrays, (H, W, 3) for an image, (T, H, W, 3) for a video.
A file that cannot be used raises `MediaError` with a stable reason code:

    empty, too_large, not_an_image, not_a_video, unsupported, truncated, corrupt, no_video_stream, too_long,
    timeout

What a model of this project makes carries a mark: the PNG text chunk or the mp4 comment `omniloom`.
"""
from __future__ import annotations

from stages.images import ImageInfo, decode_image, encode_png, probe_image, resize, resize_center_crop
from stages.limits import DEFAULT_LIMITS, MARK, Limits, MediaError
from stages.videos import VideoInfo, decode_video, encode_mp4, probe_video

__all__ = [
    "DEFAULT_LIMITS", "MARK", "ImageInfo", "Limits", "MediaError", "VideoInfo", "decode_image",
    "decode_video", "encode_mp4", "encode_png", "probe_image", "probe_video", "resize", "resize_center_crop",
]
