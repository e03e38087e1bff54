"""Every family of the registry: its samples, its published code, and the page about it."""
