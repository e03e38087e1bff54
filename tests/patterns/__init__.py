"""Patterns of one's own, and what looks like a block to no pattern."""
