"""The benchmarks: their statistics, their table, each in a tiny setting, and the other tools."""
