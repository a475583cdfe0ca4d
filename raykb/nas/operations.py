"""What an edge of a cell may be: the candidate operations of SCNAS, in two or three dimensions.

Kim et al., "Scalable Neural Architecture Search for 3D Medical Image Segmentation", MICCAI 2019,
arXiv:1906.05956. The operations are those that occur in the published cells, and ``none``:

    none                 zeros: no connection
    identity             the input; with stride 2 the factorised reduction
    avg_pool_3           mean of 3^d voxels, padding 1
    conv_3               3^d convolution, padding 1
    conv_3_dilation_2    the same with holes, padding 2
    conv_3_dilation_3    the same, padding 3

A convolution is leaky ReLU, convolution without bias, instance norm without parameters.

Departures:
    - the paper's list may have more (convolution with a squeeze, maximum pooling): the published
      cells have none of these, and nothing that is public says.
    - instance norm's momentum of 0.5 is left out: without running statistics it does nothing.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CONVOLUTIONS: dict[int, Callable[..., nn.Module]] = {2: nn.Conv2d, 3: nn.Conv3d}
NORMS: dict[int, Callable[..., nn.Module]] = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
AVERAGE_POOLS: dict[int, Callable[..., nn.Module]] = {2: nn.AvgPool2d, 3: nn.AvgPool3d}
INTERPOLATIONS = {2: "bilinear", 3: "trilinear"}


def zeros(x: Tensor, channels: int, stride: int = 1) -> Tensor:
    """Return zeros (N, channels, sides of ``x`` / stride): one number, which all places share."""
    sides = [side // stride for side in x.shape[2:]]
    return x.new_zeros(()).expand(len(x), channels, *sides)


class Zeros(nn.Module):
    """No connection: zeros of the shape that the other operations have."""

    def __init__(self, channels: int, *, stride: int) -> None:
        super().__init__()
        self.channels, self.stride = channels, stride

    def forward(self, x: Tensor) -> Tensor:
        """Return zeros, which no gradient leaves."""
        return zeros(x, self.channels, self.stride)


class AveragePool(nn.Module):
    """The mean of 3^d voxels; those beyond the border count as zeros.

    torch refuses three-dimensional images that are thinner than the kernel, padded or not.
    """

    def __init__(self, *, stride: int, dims: int) -> None:
        super().__init__()
        self.padded = AVERAGE_POOLS[dims](3, stride, 1)
        self.plain = AVERAGE_POOLS[dims](3, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C, sides / stride)."""
        thin = min(x.shape[2:]) < 3
        pooled: Tensor = self.plain(F.pad(x, [1, 1] * (x.ndim - 2))) if thin else self.padded(x)
        return pooled


class FactorisedReduce(nn.Module):
    """Halve the sides and lose no voxel of the diagonal: two 1^d convolutions with stride 2.

    The second looks at the input shifted by one voxel on each axis; both are concatenated.

    Args:
        inputs: channels that come.
        outputs: channels that go.
        dims: 2 or 3.
        affine: whether the norm has parameters: on edges it has, before a cell it has none.
    """

    def __init__(self, inputs: int, outputs: int, *, dims: int, affine: bool) -> None:
        super().__init__()
        self.activation = nn.LeakyReLU()
        first, second = outputs // 2, outputs - outputs // 2
        self.straight = CONVOLUTIONS[dims](inputs, first, 1, stride=2, bias=False)
        self.shifted = CONVOLUTIONS[dims](inputs, second, 1, stride=2, bias=False)
        self.norm = NORMS[dims](outputs, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, outputs, half of each side) of (N, inputs, even sides)."""
        x = self.activation(x)
        shifted = x
        for axis in range(2, x.ndim):
            shifted = shifted.narrow(axis, 1, x.shape[axis] - 1)
        reduced: Tensor = self.norm(torch.cat([self.straight(x), self.shifted(shifted)], dim=1))
        return reduced


def convolution(
    inputs: int, outputs: int, kernel: int, *, dims: int, stride: int = 1, dilation: int = 1
) -> nn.Sequential:
    """Return leaky ReLU, convolution, instance norm, which keep the sides but for the stride."""
    return nn.Sequential(
        nn.LeakyReLU(),
        CONVOLUTIONS[dims](
            inputs,
            outputs,
            kernel,
            stride=stride,
            padding=dilation * (kernel // 2),
            dilation=dilation,
            bias=False,
        ),
        NORMS[dims](outputs),
    )


def none(channels: int, *, stride: int, dims: int) -> nn.Module:
    """Return no connection."""
    return Zeros(channels, stride=stride)


def identity(channels: int, *, stride: int, dims: int) -> nn.Module:
    """Return the input; with stride 2 the only operation whose norm has parameters."""
    if stride == 1:
        return nn.Identity()
    return FactorisedReduce(channels, channels, dims=dims, affine=True)


def avg_pool_3(channels: int, *, stride: int, dims: int) -> nn.Module:
    """Return the mean of 3^d voxels; those beyond the border count as zeros."""
    return AveragePool(stride=stride, dims=dims)


def conv_3(channels: int, *, stride: int, dims: int) -> nn.Module:
    """Return a convolution of 3^d voxels."""
    return convolution(channels, channels, 3, dims=dims, stride=stride)


def conv_3_dilation_2(channels: int, *, stride: int, dims: int) -> nn.Module:
    """Return a convolution that looks at each second voxel."""
    return convolution(channels, channels, 3, dims=dims, stride=stride, dilation=2)


def conv_3_dilation_3(channels: int, *, stride: int, dims: int) -> nn.Module:
    """Return a convolution that looks at each third voxel."""
    return convolution(channels, channels, 3, dims=dims, stride=stride, dilation=3)


OPERATIONS: dict[str, Callable[..., nn.Module]] = {
    "none": none,
    "identity": identity,
    "avg_pool_3": avg_pool_3,
    "conv_3": conv_3,
    "conv_3_dilation_2": conv_3_dilation_2,
    "conv_3_dilation_3": conv_3_dilation_3,
}
"""``build(channels, *, stride, dims)`` by name."""


def multiply_adds(operation: str, channels: int, *, stride: int, dims: int) -> int:
    """Return the multiply-adds of an operation for each voxel that it puts out."""
    if operation == "none" or (operation == "identity" and stride == 1):
        return 0
    if operation == "identity":
        return channels**2
    voxels: int = 3**dims
    return voxels * (channels if operation == "avg_pool_3" else channels**2)
