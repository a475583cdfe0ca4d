from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from raykb.data.image_views import ClassifierView
from raykb.data.images import ImageSet
from raykb.data.pairs import PairSet
from raykb.data.views import CropFlipView
from raykb.evaluate.pair_alignment import PairAlignment
from raykb.parts.patches import of_images, patched

CPU = torch.device("cpu")
VIEW = ClassifierView(CropFlipView(mean=[0.0], std=[1 / 255]))
KINDS = 6


class Same(nn.Module):
    """Has a word's number as its feature, and the brightness of a patch."""

    width, patch = KINDS, 2
    textual = matching = nn.Identity()

    def features(self, images): ...

    def classify(self, features): ...

    def text_features(self, tokens): ...

    def joint(self, images, tokens, sizes):
        shown, eye = patched(images, 2).mean(2).round().long(), torch.eye(KINDS)
        present = of_images(sizes, 2, (2, 2))
        return SimpleNamespace(text=eye[tokens], image=eye[shown], present=present)


def pairs():
    """Return images of four patches, and texts of four tokens and three words, the same kinds."""
    kinds = np.array([[2, 3, 4, 5], [0, 1, 0, 1], [1, 0, 1, 0], [5, 4, 3, 2]])
    images = kinds.reshape(4, 1, 2, 2).repeat(2, 2).repeat(2, 3).astype(np.uint8)
    found = ImageSet(images, np.zeros(4, np.int64), np.arange(4), ("a",))
    words = np.array([[0, 0, 1, 2]] * 4)
    return PairSet(found, tuple("abcd"), kinds, words)


def test_what_belongs_together_costs_nothing_to_move_and_other_images_do():
    found = PairAlignment(pairs(), VIEW)(Same(), CPU).figures
    assert found["true"] == pytest.approx(0.0, abs=1e-3)
    assert found["false"] == pytest.approx(1.0, abs=1e-3)  # half of the set away nothing is alike


def test_a_word_is_moved_onto_the_patches_of_its_tokens():
    details = PairAlignment(pairs(), VIEW)(Same(), CPU).details
    assert details["queries"] == [0, 1, 2, 3]
    first, second, third = details["words"][0]
    assert [each["tokens"] for each in (first, second, third)] == [[2, 3], [4], [5]]
    assert np.allclose(first["plan"], [[0.25, 0.25], [0, 0]], atol=1e-3)
    assert np.allclose(third["plan"], [[0, 0], [0, 0.25]], atol=1e-3)
