"""Checkpoints in and out: formats, containers, dtypes, and input that cannot be used."""
