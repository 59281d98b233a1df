"""The networks that judge images, as layers for published weights, without torchvision."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

# Convolutions of a block: name in the weight file, channels, kernel, stride. Those in one list read the same input.
Convolution = tuple[str, int, int | tuple[int, int], int]
Chain = list[list[Convolution]]

FEATURES = 2048
INPUT_SIZE = 299
_ACROSS, _DOWN = (1, 7), (7, 1)


class _Convolved(nn.Module):
    """A convolution of Inception with its normalisation. It keeps the size at stride 1, unless it is `valid`."""

    def __init__(self, inputs: int, outputs: int, kernel: int | tuple[int, int], stride: int = 1, valid: bool = False) -> None:
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (0, 0) if valid or stride > 1 else (sides[0] // 2, sides[1] // 2)
        self.conv = nn.Conv2d(inputs, outputs, sides, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)))


class _Block(nn.Module):
    """Parallel chains of convolutions and pooling, whose outputs are concatenated."""

    def __init__(self, inputs: int, chains: list[Chain], pooled: int | None, pooling: str) -> None:
        super().__init__()
        self.chains = [[[name for name, *_ in together] for together in chain] for chain in chains]
        self.pooling = pooling
        for chain in chains:
            width = inputs
            for together in chain:
                for name, outputs, kernel, stride in together:
                    self.add_module(name, _Convolved(width, outputs, kernel, stride))
                width = together[0][1]
        self.branch_pool = None if pooled is None else _Convolved(inputs, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for chain in self.chains:
            reached = [x]
            for names in chain:
                reached = [self.get_submodule(name)(reached[0]) for name in names]
            found += reached
        pooled = self._pooled(x)
        return torch.cat([*found, pooled if self.branch_pool is None else self.branch_pool(pooled)], dim=1)

    def _pooled(self, x: Tensor) -> Tensor:
        if self.pooling == "mean":
            return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        return functional.max_pool2d(x, 3, stride=1, padding=1) if self.pooling == "max" else functional.max_pool2d(x, 3, stride=2)


def _chain(prefix: str, *convolutions: tuple[int, int | tuple[int, int], int]) -> Chain:
    """A chain of convolutions named prefix_1, prefix_2, ..., or prefix alone if there is one."""
    names = [prefix] if len(convolutions) == 1 else [f"{prefix}_{place}" for place in range(1, len(convolutions) + 1)]
    return [[(name, *convolution)] for name, convolution in zip(names, convolutions, strict=True)]


def _block_35(inputs: int, pooled: int) -> _Block:
    chains = [
        _chain("branch1x1", (64, 1, 1)),
        _chain("branch5x5", (48, 1, 1), (64, 5, 1)),
        _chain("branch3x3dbl", (64, 1, 1), (96, 3, 1), (96, 3, 1)),
    ]
    return _Block(inputs, chains, pooled, "mean")


def _block_17(narrow: int) -> _Block:
    chains = [
        _chain("branch1x1", (192, 1, 1)),
        _chain("branch7x7", (narrow, 1, 1), (narrow, _ACROSS, 1), (192, _DOWN, 1)),
        _chain("branch7x7dbl", (narrow, 1, 1), (narrow, _DOWN, 1), (narrow, _ACROSS, 1), (narrow, _DOWN, 1), (192, _ACROSS, 1)),
    ]
    return _Block(768, chains, 192, "mean")


def _block_8(inputs: int, pooling: str) -> _Block:
    def fork(prefix: str, number: int) -> list[Convolution]:
        return [(f"{prefix}_{number}a", 384, (1, 3), 1), (f"{prefix}_{number}b", 384, (3, 1), 1)]

    single: Chain = [[("branch3x3_1", 384, 1, 1)], fork("branch3x3", 2)]
    double: Chain = [[("branch3x3dbl_1", 448, 1, 1)], [("branch3x3dbl_2", 384, 3, 1)], fork("branch3x3dbl", 3)]
    return _Block(inputs, [_chain("branch1x1", (320, 1, 1)), single, double], 192, pooling)


def _smaller(inputs: int, chains: list[Chain]) -> _Block:
    return _Block(inputs, chains, None, "smaller")


class InceptionV3(nn.Module):
    """Inception v3 (Szegedy et al., CVPR 2016) with the weights of December 2015, which define FID and KID.

    >>> InceptionV3()(torch.zeros(1, 3, 256, 256, dtype=torch.uint8)).shape  # doctest: +SKIP
    torch.Size([1, 2048])

    Takes bytes (images, 3, height, width), resizes them bilinearly to 299x299, and returns the features before the classifier.
    These weights want another mean at the border than torchvision's, and maximum pooling in the last block.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Convolved(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = _Convolved(32, 32, 3, valid=True)
        self.Conv2d_2b_3x3 = _Convolved(32, 64, 3)
        self.MaxPool_1 = nn.MaxPool2d(3, 2)
        self.Conv2d_3b_1x1 = _Convolved(64, 80, 1)
        self.Conv2d_4a_3x3 = _Convolved(80, 192, 3, valid=True)
        self.MaxPool_2 = nn.MaxPool2d(3, 2)
        self.Mixed_5b = _block_35(192, 32)
        self.Mixed_5c = _block_35(256, 64)
        self.Mixed_5d = _block_35(288, 64)
        self.Mixed_6a = _smaller(
            288, [_chain("branch3x3", (384, 3, 2)), _chain("branch3x3dbl", (64, 1, 1), (96, 3, 1), (96, 3, 2))]
        )
        self.Mixed_6b = _block_17(128)
        self.Mixed_6c = _block_17(160)
        self.Mixed_6d = _block_17(160)
        self.Mixed_6e = _block_17(192)
        seven = _chain("branch7x7x3", (192, 1, 1), (192, _ACROSS, 1), (192, _DOWN, 1), (192, 3, 2))
        self.Mixed_7a = _smaller(768, [_chain("branch3x3", (192, 1, 1), (320, 3, 2)), seven])
        self.Mixed_7b = _block_8(1280, "mean")
        self.Mixed_7c = _block_8(2048, "max")

    def forward(self, images: Tensor) -> Tensor:
        x = functional.interpolate(images.float(), (INPUT_SIZE, INPUT_SIZE), mode="bilinear", align_corners=False, antialias=True)
        x = (x - 128) / 128
        for layer in self.children():
            x = layer(x)
        return x.mean(dim=(2, 3))


def alexnet_features() -> nn.Sequential:
    """The convolutions of AlexNet in its one-column form (Krizhevsky, 2014), numbered as in torchvision's weight file.

    >>> sum(weights.numel() for weights in alexnet_features().parameters())
    2469696
    """
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
    )  # fmt: skip
