import numpy as np
import pytest
import torch

from raykb.data.image_views import ClassifierView
from raykb.data.images import ImageSet
from raykb.data.views import CropFlipView
from raykb.evaluate.backbone import BackboneEvaluation, JudgedBy
from raykb.evaluate.knn import KNN
from raykb.models import MODELS
from raykb.runtime.array_files import ArrayFiles

VIEW = ClassifierView(CropFlipView(mean=[0.5], std=[0.2]))


def images(count, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 1, 12, 12), dtype=np.uint8)
    return ImageSet(pixels, np.arange(count) % 3, np.arange(count), ("a", "b", "c"))


def network(seed):
    torch.manual_seed(seed)
    return MODELS["small_convnet"](3, 1, width=4).eval()


def test_arrays_come_back_to_the_bit(tmp_path):
    files, own = ArrayFiles(str(tmp_path)), {"rows": np.random.rand(5, 3), "labels": np.arange(5)}
    assert files.read("ab") is None
    files.write("ab", own)
    kept = files.read("ab")
    assert kept.keys() == own.keys()
    for name, array in own.items():
        np.testing.assert_array_equal(kept[name], array)


@pytest.mark.parametrize("broken", [b"", b"PK no archive", "cut"])
def test_a_broken_file_is_as_none(tmp_path, broken):
    files = ArrayFiles(str(tmp_path))
    files.write("ab", {"rows": np.random.rand(5, 3)})
    path = tmp_path / "ab.npz"
    path.write_bytes(path.read_bytes()[:200] if broken == "cut" else broken)
    assert files.read("ab") is None


def test_an_evaluation_that_is_done_again_computes_no_features(tmp_path):
    by = JudgedBy(images(7, 0), images(5, 1), VIEW, 3, store=ArrayFiles(str(tmp_path)))
    evaluation, own = BackboneEvaluation(by, {"knn": KNN(neighbours=3)}), network(0)
    forwards = []
    own[0].register_forward_hook(lambda *_: forwards.append(1))
    first = evaluation(own, torch.device("cpu"))
    assert len(forwards) == 2
    assert evaluation(own, torch.device("cpu")) == first
    assert len(forwards) == 2
    assert len(list(tmp_path.iterdir())) == 2


def test_other_weights_images_or_views_have_features_of_their_own(tmp_path):
    store = ArrayFiles(str(tmp_path))
    other = ClassifierView(CropFlipView(mean=[0.4], std=[0.2]))
    for seed, view, first in ((0, VIEW, 0), (1, VIEW, 0), (0, other, 0), (0, VIEW, 2)):
        by = JudgedBy(images(7, first), images(5, first + 1), view, 3, store=store)
        BackboneEvaluation(by, {"knn": KNN()})(network(seed), torch.device("cpu"))
    assert len(list(tmp_path.iterdir())) == 8
