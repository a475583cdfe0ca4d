"""From values in [0, 1] to the 256 that an image has."""

from torch import Tensor

_ROUNDING = 5e-4  # of float32 from 0 to 255, with room: 99.9999 is 100


def to_bytes(images: Tensor) -> Tensor:
    """Return float32 images in [0, 1] as uint8; what is between two values becomes the lower."""
    return images.clamp(0, 1).mul_(255).add_(_ROUNDING).byte()


def whole(images: Tensor) -> Tensor:
    """Return float32 images with no values but those of bytes, as :func:`to_bytes` finds them."""
    return to_bytes(images) / 255
