"""Backbones that a run judges as they are."""

import socket
import urllib.error

import pytest
import torch
import torchvision
from torch import nn

from raykb.assembly.as_they_are import AsTheyAre, put_weights, read_weights
from raykb.assembly.builder import Data, network_of
from raykb.config import ConfigError, Problems
from raykb.data import download
from raykb.engine.checkpoint import encode
from raykb.models import MODELS
from raykb.parts.backbone import freeze_classifier

NAME = "ResNet18_Weights.IMAGENET1K_V1"
CONFIG = {"model": {"name": "small_convnet", "width": 4}, "view": {"name": "crop_flip"}}
DATA = Data(samples=9, classes=3, channels=1, supervised=False)


def network(classes=3, channels=1, width=4):
    made = MODELS["small_convnet"](classes, channels, width=width)
    freeze_classifier(made)
    return made


def equal_features(first, second):
    images = torch.rand(2, 1, 12, 12)
    return torch.equal(first.eval().features(images), second.eval().features(images))


def test_weights_of_a_file_are_those_of_the_network_but_for_its_classifier(tmp_path):
    own, file = network(), tmp_path / "final.pt"
    file.write_bytes(encode(own.state_dict()))
    other = network(classes=7)
    assert not equal_features(own, other)
    put_weights(other, read_weights(str(file)))
    assert equal_features(own, other)


def test_of_a_network_for_colour_a_grey_image_gets_what_its_three_equal_channels_would():
    colour, grey = network(channels=3), network(channels=1)
    put_weights(grey, colour.state_dict())
    images = torch.rand(2, 1, 12, 12)
    wanted = colour.eval().features(images.expand(-1, 3, -1, -1))
    torch.testing.assert_close(grey.eval().features(images), wanted)


def test_weights_of_another_network_are_refused():
    with pytest.raises(ValueError, match=r"have no .* name the network of these weights under"):
        put_weights(network(width=5), network().state_dict())


@pytest.mark.parametrize("content", [None, b"no file of weights", b"hello world", [1, 2], {"a": 3}])
def test_what_holds_no_weights_is_refused_by_name(tmp_path, content):
    file = tmp_path / "other.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    with pytest.raises(ValueError, match=r"other.pt: .*state dict"):
        read_weights(str(file))


def test_a_file_that_runs_code_is_not_opened(tmp_path):
    file, told = tmp_path / "other.pt", tmp_path / "told"

    class Runs:
        def __reduce__(self):
            return (open, (str(told), "w"))

    torch.save({"a": Runs()}, file)
    with pytest.raises(ValueError, match="no file of a state dict"):
        read_weights(str(file))
    assert not told.exists()


@pytest.mark.parametrize("name", ["ResNet18_Weights.NONE", "Other_Weights.V1", "nowhere"])
def test_a_name_that_torchvision_does_not_have_is_refused(name):
    with pytest.raises(ValueError, match=rf"{name}: .*; must be a file that ends in .pt"):
        read_weights(name)


@pytest.fixture
def downloaded(monkeypatch):
    """torchvision's state of ResNet-18, with weights that were drawn, or an error."""
    found = {"state": torchvision.models.resnet18().state_dict()}

    def state(self, **options):
        assert socket.getdefaulttimeout() == download.WAIT_S  # else a silent host is waited for
        if "state" not in found:
            raise urllib.error.URLError("no network")
        return found["state"]

    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", state)
    return found


def test_published_weights_fit_the_network_with_the_large_stem(downloaded):
    given = AsTheyAre(
        weights={"imagenet": NAME}, models={"imagenet": {"name": "resnet18", "stem": "large"}}
    )
    problems = Problems()
    read, absent = given.read(CONFIG, DATA, problems)
    problems.refuse()
    assert not absent
    config = CONFIG | given.sections(CONFIG)["imagenet"]
    made = network_of(config, DATA)
    put_weights(made, read["imagenet"])
    theirs = torchvision.models.resnet18()
    theirs.load_state_dict(downloaded["state"])
    theirs.fc = nn.Identity()
    images = torch.rand(2, 1, 40, 40)
    wanted = theirs.eval()(images.expand(-1, 3, -1, -1))
    torch.testing.assert_close(made.eval().features(images), wanted)


def test_weights_that_cannot_be_downloaded_are_absent_with_the_reason(downloaded):
    downloaded.clear()
    read, absent = AsTheyAre(weights={"imagenet": NAME}).read(CONFIG, DATA, Problems())
    assert not read
    reason = "<urlopen error no network> (a connection may be silent for 20 s)"
    assert absent == {"imagenet": f"{NAME}: cannot be downloaded: {reason}"}


def test_a_dry_run_downloads_nothing(downloaded, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with download.refused():
        _, absent = AsTheyAre(weights={"imagenet": NAME}).read(CONFIG, DATA, Problems())
    assert "a dry run downloads nothing" in absent["imagenet"]


def test_all_that_is_wrong_is_named_at_its_label(downloaded):
    problems = Problems()
    AsTheyAre(weights={"imagenet": NAME, "mine": "none.pt"}).read(CONFIG, DATA, problems)
    with pytest.raises(ConfigError) as error:
        problems.refuse()
    assert "as_they_are.weights.imagenet: have no " in str(error.value)
    assert "as_they_are.weights.mine: none.pt: no file of a state dict" in str(error.value)


def test_a_network_without_weights_is_refused():
    with pytest.raises(ValueError, match=r"models: \['a'\] have no weights"):
        AsTheyAre(models={"a": {"name": "resnet18"}})
    with pytest.raises(ValueError, match="weights"):
        AsTheyAre(weights={"../a": "b.pt"})


def test_model_and_view_are_the_runs_where_none_is_given():
    given = AsTheyAre(weights={"a": "a.pt"}, views={"a": {"name": "resized_crop", "size": 9}})
    assert given.sections(CONFIG) == {
        "a": {"model": CONFIG["model"], "view": {"name": "resized_crop", "size": 9}}
    }


def test_a_label_whose_weights_are_null_is_left_out():
    given = AsTheyAre(weights={"imagenet": None, "mine": "a.pt"}, models={"imagenet": {}})
    assert given.sections(CONFIG).keys() == {"mine"}
