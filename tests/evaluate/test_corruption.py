import numpy as np
import pytest
import torch
from judged import VIEW, bright_images, judged_by_images
from torch import nn

from raykb.data.corruptions import CORRUPTIONS, EXTRA, corrupted
from raykb.engine.seeding import stream_seed
from raykb.evaluate.corruption import Corrupted, Corruption
from raykb.evaluate.linear_probe import LinearProbe
from raykb.parts.backbone import LayeredClassifier

TRAIN, TEST = bright_images(60, 0), bright_images(15, 1)


def judged(seed=0, batch_size=500):
    torch.manual_seed(0)
    network = LayeredClassifier(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    return judged_by_images(network, TRAIN, TEST, seed, batch_size)


def naive(judged, name, severity):
    """Return the accuracy, an image at a time."""
    probe, hits = LinearProbe().fitted(judged.train, 3), 0
    seed = stream_seed(judged.by.seed, "corruption")
    for row, image in enumerate(torch.from_numpy(TEST.images).split(1)):
        made = corrupted(image, name, severity, ids=TEST.ids[row : row + 1], seed=seed)
        with torch.no_grad():
            features = judged.network.features(VIEW.plain({"images": made})["images"])
        hits += int(probe.logits(features).argmax()) == TEST.labels[row]
    return hits / len(TEST)


@pytest.mark.parametrize("batch_size", [4, 500])
def test_it_is_what_a_clean_probe_says_of_corrupted_images_one_at_a_time(batch_size):
    names, severities = ["brightness", "speckle_noise", "fog"], [1, 5]
    asked = judged(seed=3, batch_size=batch_size)
    figures, details = Corruption(names=names, severities=severities)(asked)
    wanted = {name: [naive(asked, name, severity) for severity in severities] for name in names}
    assert details == {"severities": severities, "top1": wanted}
    assert figures == pytest.approx(
        {"top1": np.mean([*wanted.values()])}
        | {f"top1_{name}": np.mean(row) for name, row in wanted.items()}
    )
    assert len({*map(tuple, wanted.values())}) > 1


def test_brightness_that_tells_the_class_is_harmed_by_brightness_and_not_by_pixelation():
    asked = judged()
    clean = LinearProbe()(asked).figures["top1"]
    figures = Corruption(names=["brightness", "pixelate"], severities=[5])(asked).figures
    assert figures["top1_brightness"] < 0.8 < clean
    assert figures["top1_pixelate"] > 0.8


def test_settings_of_the_probe_reach_it():
    asked, one = judged(), {"names": ["contrast"], "severities": [1]}
    assert Corruption(**one)(asked).figures["top1"] > 0.8
    for held_back in ({"weight_decay": 1e9}, {"weight_decay": 100.0, "iterations": 1}):
        assert Corruption(**one, **held_back)(asked).figures["top1"] < 0.7


def test_without_settings_it_is_the_fifteen_at_three_severities():
    corruption = Corruption()
    assert corruption.names == tuple(CORRUPTIONS)
    assert len(corruption.names) == 15
    assert corruption.severities == (1, 3, 5)


# ---------------------------------------------------------------------- examples


def test_what_becomes_of_an_image_depends_on_its_id_not_on_where_it_is_read():
    several = Corrupted(TEST, "gaussian_noise", 5, 0)
    before = TEST.images.copy()
    whole = several.read(np.arange(15))
    assert (whole.arrays["images"] != before).any((1, 2, 3)).all()
    assert (TEST.images == before).all()
    assert (whole.arrays["labels"] == TEST.labels).all()
    rows = np.array([7, 2, 11])
    for found in (several.read(rows), several.subset(rows).read(np.arange(3))):
        assert (found.arrays["images"] == whole.arrays["images"][rows]).all()
        assert found.ids.tolist() == TEST.ids[rows].tolist()
    assert len(several.subset(rows)) == 3
    assert several.subset(rows).ids.tolist() == rows.tolist()


@pytest.mark.parametrize("other", [("shot_noise", 5, 0), ("impulse_noise", 4, 0)])
def test_each_corruption_and_severity_makes_images_of_its_own(other):
    first, second = (
        Corrupted(TEST, *which).read(np.arange(15)).arrays["images"]
        for which in (("impulse_noise", 5, 0), other)
    )
    assert (first != second).any((1, 2, 3)).all()


def test_the_seed_draws_what_is_drawn():
    read = [Corrupted(TEST, "fog", 5, n).read(np.arange(15)).arrays["images"] for n in (0, 1)]
    assert (read[0] != read[1]).any((1, 2, 3)).all()


# ---------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"names": ["rain"]}, r"names: \['rain'\], must be a list of some of gaussian_noise"),
        ({"names": "fog"}, "names: 'fog', must be a list"),
        ({"names": []}, r"names: \[\], must be a list"),
        ({"severities": [0, 6]}, r"severities: \[0, 6\], must be a list of some of 1, 2, 3, 4, 5"),
        ({"weight_decay": -1.0, "iterations": 0}, "weight_decay: -1.0.*; iterations: 0, must be"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, told):
    with pytest.raises(ValueError, match=told):
        Corruption(**settings)


def test_corruptions_beside_the_fifteen_may_be_asked_for():
    assert Corruption(names=[*EXTRA]).names == [*EXTRA]
