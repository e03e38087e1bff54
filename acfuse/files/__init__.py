"""Files in and out: a live model or bare tensors, with the container that they came in.

Loading runs nothing that a file says. `detect` tells what a file is; `torch_load`, `safetensors`,
`hdf5`, `pt2_archive` and `shards` read one format each; `nesting` finds the tensors in what was
read, `user_code` builds the network that they go into, `write` brings them back into their form.
"""
