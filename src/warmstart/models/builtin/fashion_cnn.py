"""The small convolutional network of founding document 000 (Fashion-MNIST, 440,458 parameters).

Shapes: N images, H x W pixels, K classes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class FashionCNN(nn.Module):
    """Three convolutions and two linear layers; (N, 1, H, W) -> logits (N, K). H and W are at least 8.

    The attribute names are the keys of the document's own file, which loads strictly. That file ended
    in log_softmax and was trained with NLL; logits with cross entropy are the same loss, and every
    other model here gives logits.
    """

    def __init__(self, num_classes: int = 10, dropout: float = 0.3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 64, kernel_size=5, padding=2)
        self.bn1 = nn.BatchNorm2d(64)
        self.conv2 = nn.Conv2d(64, 128, kernel_size=3, padding=1)
        self.bn2 = nn.BatchNorm2d(128)
        self.conv3 = nn.Conv2d(128, 256, kernel_size=3, padding=1)
        self.bn3 = nn.BatchNorm2d(256)
        self.fc1 = nn.Linear(256, 256)
        self.bn_fc = nn.BatchNorm1d(256)
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(256, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        x = F.max_pool2d(F.relu(self.bn3(self.conv3(x))), 2)
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        x = F.relu(self.bn_fc(self.fc1(x)))
        return self.fc2(self.dropout(x))
