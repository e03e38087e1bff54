"""Turns a trained multi-branch convolutional network into the plain one that it computes."""
