"""What the geometry decides on integers, held by solvers against what a convolution is."""
