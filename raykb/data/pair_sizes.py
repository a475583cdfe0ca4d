"""The size that ViLT gives an image (Kim, Son, Kim, ICML 2021, section 4.1, as its code has it)."""

import math


def scaled_size(height: int, width: int, *, shorter: int = 384, patch: int = 32) -> tuple[int, int]:
    """Return height and width: the shorter side as wanted, the longer limited, whole patches.

    The longer side is at most ``int(1333 / 800 * shorter)``; sides are rounded half up and then
    down to multiples of the patch. A side that would have no patch has one.

    Golden: 480 x 640 gives 384 x 512; 384 x 640 gives 352 x 608; none has more than 228 patches.
    """
    limit = int(1333 / 800 * shorter)
    scale = shorter / min(height, width)
    if scale * max(height, width) > limit:
        scale = limit / max(height, width)
    rounded = (math.floor(side * scale + 0.5) for side in (height, width))
    first, second = (max(side // patch, 1) * patch for side in rounded)
    return first, second
