"""The small segmentation transformer of founding document 002 (1,747,923 parameters for 19 classes).

Shapes: N images, H x W pixels, h x w positions of a stage (t = h * w tokens), C channels, K classes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_WIDTHS = (32, 64, 128, 192)  # C by stage
_DEPTHS = (1, 2, 2, 2)
_REDUCTIONS = (8, 4, 2, 1)  # of keys and values, per side
_DROPOUT_FACTORS = (0.5, 0.75, 1.0, 1.25)
_MLP_RATIO = 2
_DECODER_WIDTH = 128


class PatchEmbed(nn.Module):
    """Overlapping patches: (N, C, H, W) -> tokens (N, t, C') and their (h, w)."""

    def __init__(self, in_channels: int, width: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, kernel_size, stride, padding=kernel_size // 2)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        x = self.proj(x)
        return self.norm(_tokens(x)), (x.shape[2], x.shape[3])


class Attention(nn.Module):
    """Attention with one head, whose keys and values stand for `reduction` x `reduction` tokens each."""

    def __init__(self, width: int, reduction: int, dropout: float) -> None:
        super().__init__()
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.reduction, self.dropout = reduction, dropout
        if reduction > 1:
            self.sr = nn.Conv2d(width, width, reduction, stride=reduction)
            self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        context = self.norm(_tokens(self.sr(_image(x, size)))) if self.reduction > 1 else x
        keys, values = self.kv(context).chunk(2, dim=-1)
        rate = self.dropout if self.training else 0.0
        # Four dimensions, as the fast kernels ask for: N, heads, t, C.
        query, keys, values = (each.unsqueeze(1) for each in (self.q(x), keys, values))
        x = F.scaled_dot_product_attention(query, keys, values, dropout_p=rate).squeeze(1)
        return F.dropout(self.proj(x), rate, self.training)


class Mlp(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, width * _MLP_RATIO)
        self.fc2 = nn.Linear(width * _MLP_RATIO, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(x)))))


class TransformerBlock(nn.Module):
    def __init__(self, width: int, reduction: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, reduction, dropout)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, dropout)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        x = x + self.attn(self.norm1(x), size)
        return x + self.mlp(self.norm2(x))


class LMSA(nn.Module):
    """The document's "lightweight multi-scale attention": a separable 3x3 convolution, gated by channel,
    beside its input. (N, C, h, w) -> the same."""

    def __init__(self, width: int, reduction: int = 4) -> None:
        super().__init__()
        self.dw_conv3x3 = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.pw_conv = nn.Conv2d(width, width, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.fc = nn.Sequential(
            nn.Linear(width, width // reduction, bias=False),
            nn.ReLU(),
            nn.Linear(width // reduction, width, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn(self.pw_conv(self.dw_conv3x3(x)))
        return x + out * self.fc(out.mean(dim=(2, 3)))[:, :, None, None]


class Decoder(nn.Module):
    """Four stages -> logits (N, K, H, W)."""

    def __init__(self, num_classes: int, lmsa: bool) -> None:
        super().__init__()
        width = _DECODER_WIDTH
        self.linear_c4 = nn.Linear(_WIDTHS[3], width)
        self.linear_c3 = nn.Linear(_WIDTHS[2], width)
        self.linear_c2 = nn.Linear(_WIDTHS[1], width)
        self.linear_c1 = nn.Linear(_WIDTHS[0], width)
        self.lmsa = LMSA(width) if lmsa else nn.Identity()
        self.linear_fuse = nn.Sequential(nn.Linear(4 * width, width), nn.GELU(), nn.Linear(width, width))
        self.conv_seg = nn.Conv2d(width, num_classes, 1)

    def forward(self, stages: list[Tensor], image_size: torch.Size) -> Tensor:
        size = stages[0].shape[2:]
        layers = (self.linear_c1, self.linear_c2, self.linear_c3, self.linear_c4)
        first: Any = self.linear_fuse[0]
        activation, last = self.linear_fuse[1], self.linear_fuse[2]
        # Layers that mix channels and interpolations that mix positions may change places. In the published
        # order (upsampling first, and all stages side by side before `first`) the same numbers take longer.
        parts = first.weight.split(_DECODER_WIDTH, dim=1)
        fused = _image(F.linear(layers[0](_tokens(stages[0])), parts[0], first.bias), size)
        for layer, x, part in zip(layers[1:], stages[1:], parts[1:], strict=True):
            fused = fused + _upsample(_image(F.linear(layer(_tokens(x)), part), x.shape[2:]), size)
        logits = self.conv_seg(self.lmsa(_image(last(activation(_tokens(fused))), size)))
        return _upsample(logits, image_size)


class MicroSegFormer(nn.Module):
    """(N, 3, H, W) -> logits (N, K, H, W). H and W are at least 29, and best multiples of 32.

    The attribute names are the keys of the document's own files, and the layers are made in the order in
    which those files number the state of their optimizer. `dropout` is that of the third stage; the
    others have 0.5, 0.75 and 1.25 times as much.
    """

    def __init__(self, num_classes: int = 19, dropout: float = 0.15, lmsa: bool = True) -> None:
        super().__init__()
        channels = (3, *_WIDTHS)
        for stage, width in enumerate(_WIDTHS, 1):
            kernel_size, stride = (7, 4) if stage == 1 else (3, 2)
            embed = PatchEmbed(channels[stage - 1], width, kernel_size, stride)
            self.add_module(f"patch_embed{stage}", embed)
        for stage, width in enumerate(_WIDTHS, 1):
            rate, reduction = dropout * _DROPOUT_FACTORS[stage - 1], _REDUCTIONS[stage - 1]
            blocks = [TransformerBlock(width, reduction, rate) for _ in range(_DEPTHS[stage - 1])]
            self.add_module(f"block{stage}", nn.ModuleList(blocks))
        for stage, width in enumerate(_WIDTHS, 1):
            self.add_module(f"norm{stage}", nn.LayerNorm(width))
        self.decoder = Decoder(num_classes, lmsa)

    def forward(self, x: Tensor) -> Tensor:
        stages, image_size = [], x.shape[2:]
        for stage in range(1, len(_WIDTHS) + 1):
            tokens, size = self.get_submodule(f"patch_embed{stage}")(x)
            for block in self.get_submodule(f"block{stage}").children():
                tokens = block(tokens, size)
            x = _image(self.get_submodule(f"norm{stage}")(tokens), size)
            stages.append(x)
        return self.decoder(stages, image_size)


def _tokens(x: Tensor) -> Tensor:
    """(N, C, h, w) -> (N, t, C)"""
    return x.flatten(2).transpose(1, 2)


def _image(tokens: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """(N, t, C) -> (N, C, h, w)"""
    return tokens.transpose(1, 2).unflatten(2, size)


def _upsample(x: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
