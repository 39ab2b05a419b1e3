"""ViT-Small.

Source: Dosovitskiy et al., *An Image is Worth 16x16 Words*, ICLR 2021; the small size and the initialisation are those
    of Touvron et al., *Training data-efficient image transformers*, ICML 2021 (DeiT-S).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from labo.errors import UserError
from labo.tasks.images.models.options import Options

WIDTH, DEPTH, HEADS = 384, 12, 6
# As both papers have it; torch's own is 1e-5.
EPSILON = 1e-6


def vit_small(name: str, classes: int, image_size: int, options: Options) -> nn.Module:
    """Patches of 4 pixels for images below 64, of 8 below 128, of 16 above, or of `patch`; a class token.

    Raises:
        UserError: the image is no whole number of patches wide.
    """
    patch = options.patch or (4 if image_size < 64 else 8 if image_size < 128 else 16)
    if image_size % patch:
        raise UserError(
            f"Model '{name}' needs images of a whole number of patches of {patch} pixels a side, but got {image_size} "
            "pixels; set `patch` to a divisor of it."
        )
    return VisionTransformer(classes, (image_size // patch) ** 2, patch, options.dropout)


class VisionTransformer(nn.Module):
    """Features (N, 3, H, W) of `patches` patches to logits (N, C) by a class token.

    Dropout lies after each linear layer but queries, keys and values, and after the positions are added.
    """

    def __init__(self, classes: int, patches: int, patch: int, dropout: float) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, patch, patch)
        self.token = nn.Parameter(torch.empty(1, 1, WIDTH))
        self.positions = nn.Parameter(torch.empty(1, patches + 1, WIDTH))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(dropout) for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(WIDTH, eps=EPSILON)
        self.head = nn.Linear(WIDTH, classes)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.patches.weight, std=math.sqrt(1 / self.patches.weight[0].numel()))
        nn.init.zeros_(self.patches.bias)  # pyright: ignore[reportArgumentType]
        nn.init.trunc_normal_(self.token, std=0.02)
        nn.init.trunc_normal_(self.positions, std=0.02)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N, C) of features (N, 3, H, W)."""
        words = self.patches(features).flatten(2).transpose(1, 2)
        words = torch.cat([self.token.expand(len(words), -1, -1), words], 1)
        words = self.blocks(self.dropout(words + self.positions))
        return self.head(self.norm(words[:, 0]))


class Block(nn.Module):
    """Attention and a perceptron, each behind its normalisation and beside a shortcut."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(WIDTH, eps=EPSILON), Attention(), nn.Dropout(dropout))
        self.perceptron = nn.Sequential(
            nn.LayerNorm(WIDTH, eps=EPSILON),
            nn.Linear(WIDTH, 4 * WIDTH),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(4 * WIDTH, WIDTH),
            nn.Dropout(dropout),
        )

    def forward(self, words: Tensor) -> Tensor:
        """(N, T, WIDTH) to the same."""
        words = words + self.attention(words)
        return words + self.perceptron(words)


class Attention(nn.Module):
    """Every word attends to every word."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs = nn.Linear(WIDTH, 3 * WIDTH)
        self.outputs = nn.Linear(WIDTH, WIDTH)

    def forward(self, words: Tensor) -> Tensor:
        """(N, T, WIDTH) to the same."""
        rows, length, _ = words.shape
        query, key, value = self.inputs(words).view(rows, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.outputs(mixed.transpose(1, 2).reshape(rows, length, WIDTH))
