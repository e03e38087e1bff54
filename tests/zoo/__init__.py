"""The runner of `make zoo`, and what it wrote."""
