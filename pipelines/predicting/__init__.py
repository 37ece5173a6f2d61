"""What a stage takes, by what is known of it. In: a stage of a plan. Out: `Takes`.

data       ingest and pretokenize, before they ever ran
figures    `Takes`, and the hours and checkpoints of workers
earlier    what the stage made before, and how long that took
training   `train`, `distill`, `train_scorer`, and the tokenizers
"""
