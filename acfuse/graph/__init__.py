"""Blocks by what they compute: steps of a forward, and the regions that are one convolution.

`steps` is the vocabulary, `regions` chooses (both know no framework), `from_fx` reads a live
module and puts a region back.
"""
