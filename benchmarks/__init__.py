"""What acfuse takes and gives, measured: a module for each figure, all of them by `make bench`."""
