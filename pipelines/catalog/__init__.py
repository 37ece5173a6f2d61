"""The catalog: what a storage holds, found by name, with where each thing came from and what was made from it."""
