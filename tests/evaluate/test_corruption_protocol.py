"""Errors under corruption: those of images one at a time, and the same ones for every network."""

import numpy as np
import pytest
import torch
from judged import VIEW, bright_images
from torch import nn

from raykb.data.corruptions import corrupted
from raykb.engine.seeding import stream_seed
from raykb.evaluate.robustness import Robustness
from raykb.parts.backbone import LayeredClassifier

TEST, CPU = bright_images(15, 1), torch.device("cpu")


def network():
    torch.manual_seed(0)
    return LayeredClassifier(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


def wrong(name, severity):
    """Return the share of errors, an image at a time."""
    seed, said = stream_seed(0, "corruption"), []
    for row, image in enumerate(torch.from_numpy(TEST.images).split(1)):
        made = corrupted(image, name, severity, ids=TEST.ids[row : row + 1], seed=seed)
        said.append(int(network()(VIEW.plain({"images": made})["images"]).argmax()))
    return float(np.mean(said != TEST.labels))


def test_it_is_how_often_images_are_taken_for_another_class_over_corruptions_and_severities():
    names, severities = ["brightness", "speckle_noise", "fog"], [1, 5]
    asked = Robustness(names=names, severities=severities).of(TEST, VIEW)
    figures, details = asked(network(), CPU)
    errors = {name: [wrong(name, severity) for severity in severities] for name in names}
    assert details == {"severities": severities, "errors": errors}
    assert figures == pytest.approx(
        {"error": np.mean([*errors.values()])}
        | {f"top1_{name}": 1 - np.mean(row) for name, row in errors.items()}
    )
    assert 0 < figures["error"] < 1


def test_some_images_are_drawn_once_for_all_networks():
    few = [Robustness(images=4, names=["fog"], severities=[3]).of(TEST, VIEW) for _ in range(2)]
    asked = [each.args[0] for each in few]
    assert len(asked[0]) == 4
    assert (asked[0].ids == asked[1].ids).all()


def test_what_is_no_corruption_and_no_severity_is_told_at_once():
    with pytest.raises(ValueError, match=r"(?s)images: 0.*names: \['rain'\].*severities: \[6\]"):
        Robustness(images=0, names=["rain"], severities=[6])
