"""From documents to tensors. In: rows of documents, each a list of `Segment`s (numpy), as the packer placed them.
Out: a `Batch` with everything that a training step reads, noise and times apart.

    segment   what documents consist of
    tensors   what a training step reads
    collate   rows of documents into a `Batch`, with the rules of what is a label
    visual    its visual segments, by representation and by objective
"""

from omniloom.models.unified.batch.collate import collate
from omniloom.models.unified.batch.segment import Document, Segment, document_length, visual_segment
from omniloom.models.unified.batch.tensors import IGNORE, Batch, VisualPart, VisualTask

__all__ = [
    "IGNORE",
    "Batch",
    "Document",
    "Segment",
    "VisualPart",
    "VisualTask",
    "collate",
    "document_length",
    "visual_segment",
]
