"""How what a run tells is shown: bars in a terminal, plain lines where there is none, JSON for machines, or nothing.

In: events, and counts between them (`events`). Out: text on one stream, which holds nothing else. `choice` takes the
view that a terminal has; `lines` and `bars` are the views.
"""
