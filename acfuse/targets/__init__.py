"""Files that a fused model is exported to."""
