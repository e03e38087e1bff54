"""8 bits: ranges of weights, grids, figures, saturation, and the layers that lose most."""
