"""A classifier with two output layers: its own linear one, and a spatially attentive one (SAOL)."""

from collections.abc import Mapping

from torch import Tensor, nn

from raykb.models.staged import STAGED
from raykb.parts.backbone import WithStages, freeze_classifier, require
from raykb.parts.spatial_output import Evidence, SpatialOutput, log_mixture

OUTPUTS = ("linear", "spatial")


class SpatiallyAttentive(nn.Module):
    """A backbone and a second output layer on the maps of its last stages.

    The layer that says nothing needs no gradient: workers that share a training of the other would
    wait for it. Who trains both says so, as ``raykb/recognition/saol.py`` does.

    Args:
        backbone: has maps of several stages, and a linear head.
        classes: of that head.
        stages: how many of the last stages the layer sees; fewer where there are no more.
        head_width: channels m that each stage is reduced to.
        output: which layer says what an image is, ``linear`` or ``spatial``.

    Raises:
        ValueError: the backbone has no stages, or an argument is not what it must be.
    """

    def __init__(
        self, backbone: nn.Module, classes: int, *, stages: int, head_width: int, output: str
    ) -> None:
        super().__init__()
        if min(stages, head_width) < 1 or output not in OUTPUTS:
            raise ValueError(
                f"stages: {stages}, head_width: {head_width}, output: {output!r}; the first two "
                f"must be at least 1, output one of {', '.join(OUTPUTS)}"
            )
        self.backbone = require(backbone, WithStages, "a spatially attentive output layer")
        widths = self.backbone.stage_widths[-stages:]
        self.spatial = SpatialOutput(widths, classes, width=head_width)
        self.seen, self.output = len(widths), output
        if output == "linear":
            self.spatial.requires_grad_(False)
        else:
            freeze_classifier(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, classes): the linear head's, or log yhat, which goes for them."""
        if self.output == "linear":
            return self.classify(self.features(images))
        attention, classes = self.spatial(self.stages(images)[-self.seen :])
        return log_mixture(attention, classes)

    def evidence(self, images: Tensor) -> Evidence:
        """Return what both heads say of images."""
        stages = self.stages(images)
        attention, classes = self.spatial(stages[-self.seen :])
        logits = self.classify(self.pooled(stages[-1]))
        return Evidence(attention, classes, logits, stages[-1])

    @property
    def width(self) -> int:
        """Width of the backbone's features."""
        return int(self.backbone.width)

    @property
    def map_width(self) -> int:
        """Channels of the backbone's maps."""
        return int(self.backbone.map_width)

    @property
    def stage_widths(self) -> list[int]:
        """Channels of the backbone's maps of each resolution."""
        return list(self.backbone.stage_widths)

    def stages(self, images: Tensor) -> list[Tensor]:
        """Return the backbone's maps (N, C, h, w) of each resolution."""
        stages: list[Tensor] = self.backbone.stages(images)
        return stages

    def pooled(self, maps: Tensor) -> Tensor:
        """Return the backbone's features (N, width) of its last maps."""
        features: Tensor = self.backbone.pooled(maps)
        return features

    def maps(self, images: Tensor) -> Tensor:
        """Return the backbone's last maps (N, C, h, w)."""
        maps: Tensor = self.backbone.maps(images)
        return maps

    def features(self, images: Tensor) -> Tensor:
        """Return the backbone's features (N, width)."""
        features: Tensor = self.backbone.features(images)
        return features

    def classify(self, features: Tensor) -> Tensor:
        """Return the linear head's logits (N, classes) of features."""
        logits: Tensor = self.backbone.classify(features)
        return logits


def spatially_attentive(
    classes: int,
    channels: int = 3,
    *,
    backbone: str = "small_convnet",
    options: Mapping[str, int | float | str | bool] | None = None,
    stages: int = 3,
    head_width: int = 64,
    output: str = "linear",
) -> SpatiallyAttentive:
    """Return a network with both output layers, from (N, channels, H, W) to logits (N, classes).

    Args:
        classes: number of classes.
        channels: of the images.
        backbone: a network's name.
        options: its arguments.
        stages: as of :class:`SpatiallyAttentive`, as are the others.
        head_width: likewise.
        output: likewise.

    Raises:
        ValueError: there is no such backbone, or it does not take these options.
    """
    if backbone not in STAGED:
        raise ValueError(f"backbone: {backbone!r}, must be one of {', '.join(STAGED)}")
    try:
        network = STAGED[backbone](classes, channels, **(options or {}))
    except TypeError as error:
        raise ValueError(f"options: {dict(options or {})} of {backbone}: {error}") from error
    return SpatiallyAttentive(network, classes, stages=stages, head_width=head_width, output=output)
