"""Sweeps: a pipeline once for each of several values of its fields, what the trials share made once.

`config` and `fields` are the section of the file, `spaces` and `search` choose the values, `trials` makes a checked
config and a plan of each, `pruning` ends trainings that fall behind, `running` runs them, `results` ranks them, and
`tables` and `page` show what came out.
"""
