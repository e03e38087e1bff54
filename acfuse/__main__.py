"""`python -m acfuse`."""

from acfuse.cli import main

main()
