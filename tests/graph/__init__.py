"""Blocks that nobody named: what is fused, what is refused, and that nothing changes."""
