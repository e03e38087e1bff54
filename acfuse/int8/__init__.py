"""What fusing means for 8 bits: ranges of weights, and how they are made even without a bit lost.

`channels` says which channels of a network must have the same scale, `equalize` chooses scales that
are powers of two, `ranges` measures what 8 bits lose.
"""
