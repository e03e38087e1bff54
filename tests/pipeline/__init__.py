"""The pipeline: what is timed, and what times are said to show."""
