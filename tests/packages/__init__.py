"""Networks of others, from packages that may not be installed."""
