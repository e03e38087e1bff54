"""What acfuse asks of the machine: files, signals, limits, memory, safe text."""
