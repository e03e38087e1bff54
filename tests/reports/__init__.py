"""Reports: what they say, in which formats, and that a browser shows them."""
