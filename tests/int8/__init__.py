"""Ranges of weights: what a grid of 8 bits costs, and which layers are measured."""
