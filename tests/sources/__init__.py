"""What can be fused, each kind of file for itself."""
