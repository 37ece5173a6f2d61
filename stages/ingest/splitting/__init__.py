"""Splitting: which records a corpus has, which are near twins, and which split each lies in."""
