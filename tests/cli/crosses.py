"""A network whose first block a cost table may decide about, and whose second one it may not."""

import torch
from torch import nn


class Crosses(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(4, 4, (1, 3), padding=(0, 1))
        self.b = nn.Conv2d(4, 4, (3, 1), padding=(1, 0))
        self.c = nn.Conv2d(4, 4, (1, 3), padding=(0, 1))
        self.d = nn.Conv2d(4, 4, (3, 1), padding=(1, 0))

    def forward(self, x):
        return self.a(x) + self.b(x) + self.c(x) + self.d(x)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = Crosses()
        self.second, self.side = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        y = torch.relu(self.first(x))
        return self.second(y) + self.side(y)
