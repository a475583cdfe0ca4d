"""A policy as a torchvision transform, for data loaders that take one image at a time."""

from typing import Any, Protocol

import PIL.Image
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import Transform
from torchvision.transforms.v2 import functional as F

from raykb.augment.draws import Draws, apply_draws


class Drawing(Protocol):
    """What the transform asks of a policy."""

    @property
    def draws(self) -> int:
        """Uniform numbers per image."""

    def draw(self, uniforms: Tensor) -> Draws:
        """Return what images undergo, given their numbers."""


class PolicyTransform(Transform):  # type: ignore[misc]  # torchvision is not typed
    """A policy as a torchvision transform: one image in, an image of the same kind out.

    Takes a PIL image (L or RGB), or a uint8 tensor (C, H, W), alone or with labels beside it. The
    numbers come from torch's global generator, which a ``DataLoader`` seeds in each worker.
    """

    def __init__(self, policy: Drawing) -> None:
        super().__init__()
        self.policy = policy

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw once for the sample."""
        return {"draws": self.policy.draw(torch.rand(1, self.policy.draws, dtype=torch.float64))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Apply what was drawn."""
        if isinstance(inpt, PIL.Image.Image) and inpt.mode in ("L", "RGB"):
            image = apply_draws(F.pil_to_tensor(inpt)[None], params["draws"])[0]
            return F.to_pil_image(image, mode=inpt.mode)
        plain = not isinstance(inpt, tv_tensors.TVTensor) or isinstance(inpt, tv_tensors.Image)
        if isinstance(inpt, Tensor) and plain and inpt.ndim == 3 and inpt.dtype == torch.uint8:
            image = apply_draws(inpt.as_subclass(Tensor)[None], params["draws"])[0]
            return tv_tensors.wrap(image, like=inpt)
        given = (
            f"{inpt.mode} image"
            if isinstance(inpt, PIL.Image.Image)
            else f"{type(inpt).__name__} {inpt.dtype} {tuple(inpt.shape)}"
        )
        raise TypeError(
            f"PolicyTransform: {given}; allowed: a PIL image of mode L or RGB, or a uint8 tensor "
            "(C, H, W); apply it before the conversion to float, and to no boxes or masks"
        )
