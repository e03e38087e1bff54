"""Tests of the command line: what a user types, sees and finds on the disk."""
