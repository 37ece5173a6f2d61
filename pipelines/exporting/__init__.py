"""Exporting: a trained model for tools of others. In: a model, by what a user calls it. Out: a folder."""
