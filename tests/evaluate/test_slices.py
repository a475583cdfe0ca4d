import json
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from raykb.evaluate.slices import LabelledSlice
from raykb.evaluate.sliding_window import SlidingWindow


class Bright(nn.Module):
    """Finds label 1 where an image is positive."""

    def forward(self, images):
        return torch.cat([-images, images], dim=1)


def case(name, *where):
    label = np.zeros((4, 6, 5), np.uint8)
    for place in where:
        label[place] = 1
    return SimpleNamespace(name=name, image=(2.0 * label - 1)[None], label=label)


def test_the_slice_with_most_of_the_first_labelled_case_is_kept_as_json_has_it():
    cases = [case("empty"), case("one", (2, 1, 1), (2, 3, 4), (1, 1, 1)), case("two", (0, 0, 0))]
    found = LabelledSlice(cases, SlidingWindow(tile=(4, 4, 4)))(Bright(), torch.device("cpu"))
    assert found.figures == {}
    shown = json.loads(json.dumps(found.details))
    assert (shown["case"], shown["slice"]) == ("one", 2)
    assert np.argwhere(shown["reference"]).tolist() == [[1, 1], [3, 4]]
    assert shown["prediction"] == shown["reference"]
    assert np.array(shown["image"]).shape == (6, 5)
    assert np.max(shown["image"]) == 255
