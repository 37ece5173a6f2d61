"""The stages of the demo, in order."""

NAMES = ("ingest", "tokenizer_image", "tokenizer_joint", "pretokenize", "train", "evaluate")
