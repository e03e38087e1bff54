"""Tests of the algebra: its laws, its layers, and the way back to a layer."""
