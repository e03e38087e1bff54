"""A forward with an assert as Python runs it. PYTEST_DONT_REWRITE."""

from torch import nn


class Asserts(nn.Module):
    """Two arms and their sum, for images of three rows or more."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(4, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        assert x.shape[2] > 2, f"three rows or more, not {x.shape}"
        return self.a(x) + self.b(x)
