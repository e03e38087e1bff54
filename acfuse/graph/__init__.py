"""Blocks by what they compute: steps of a forward, and the regions that are one convolution.

`steps` is the vocabulary, `plans` says what each value would cost, `regions` chooses, `explain`
says why not: they know no framework. `fx_*` read a live module and put a region back, `onnx_*` do
it with an ONNX graph.
"""
