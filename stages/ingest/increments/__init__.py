"""Increments: what of the sources was read before, and how much of it still holds."""
