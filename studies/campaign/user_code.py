"""Code as a user may bring it: tiny networks, and readers that hold Python's lock once a file named `hold` is there."""

import ctypes
import os
import threading
import time
from pathlib import Path

from torch import Tensor, nn


def images(num_classes: int) -> nn.Module:
    """Return a network of images [B, 3, H, W] with dropout."""
    return _network(nn.Conv2d, nn.BatchNorm2d, nn.AdaptiveAvgPool2d, num_classes, stride=2)


def videos(num_classes: int) -> nn.Module:
    """Return a network of clips [B, 3, T, H, W] with dropout."""
    return _network(nn.Conv3d, nn.BatchNorm3d, nn.AdaptiveAvgPool3d, num_classes, stride=(1, 2, 2))


def _network(conv, norm, pool, num_classes: int, stride) -> nn.Module:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(conv(3, 8, 3, stride, 1), norm(8), nn.ReLU())
            self.body = nn.Sequential(conv(8, 16, 3, stride, 1), norm(16), nn.ReLU())
            self.head = nn.Sequential(pool(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, num_classes))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(self.stem(x)))

    return Network()


def _hold_the_lock_when_told() -> None:
    def wait() -> None:
        while not Path("hold").exists():
            time.sleep(0.01)
        # a C function that is called with Python's lock held
        ctypes.PyDLL(None).sleep(1000)

    threading.Thread(target=wait, daemon=True).start()


os.register_at_fork(after_in_child=_hold_the_lock_when_told)
