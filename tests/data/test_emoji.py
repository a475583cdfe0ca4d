import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raykb.data.datasets import open_records
from raykb.data.emoji import caption_of, emoji
from raykb.data.loading import load
from raykb.data.pairs import PairSet, captions_of
from raykb.data.wordpiece import WordPiece

NAMES = ["DOG FACE", "RED APPLE", "BOLD_ARROW", "TULIP", "OWL"]


def packages(root, vendors=("google", "twitter")):
    entries = [
        {"name": name, "short_names": [name.split()[0].lower()], "sort_order": number}
        | {"subcategory": "sub-kind", "category": f"Kind {number % 2}", "image": f"{number}.png"}
        | {f"has_img_{vendor}": True for vendor in vendors}
        for number, name in enumerate(NAMES)
    ]
    entries.append(entries[0] | {"category": "Flags"})
    entries.append(entries[0] | {"has_img_google": False, "has_img_twitter": False})
    for place, vendor in enumerate(vendors):
        pictures = root / f"emoji-datasource-{vendor}" / "img" / vendor / "64"
        pictures.mkdir(parents=True)
        for number in range(len(NAMES)):
            colour = (40 * number, 100 * place, 0, 255)
            picture = Image.new("RGBA", (64, 64), colour)
            picture.putpixel((0, 0), (0, 0, 0, 0))
            picture.save(pictures / f"{number}.png")
        (pictures.parents[2] / "emoji.json").write_text(json.dumps(entries))
    return root


def test_pictures_of_one_emoji_are_all_for_training_or_all_for_the_test(tmp_path):
    counts = emoji(tmp_path / "out", root=str(packages(tmp_path / "npm")), test_fraction=0.4)
    assert counts == {"train": 6, "test": 4}
    train, test, _ = open_records(
        "parquet", train=str(tmp_path / "out/train"), test=str(tmp_path / "out/test")
    )
    assert {id // 2 for id in train.ids}.isdisjoint(id // 2 for id in test.ids)
    assert set(captions_of(train)).isdisjoint(captions_of(test))
    assert train.classes == ("Kind 0", "Kind 1")


def test_a_held_out_picture_is_of_an_emoji_that_another_package_shows_in_training(tmp_path):
    root = str(packages(tmp_path / "npm"))
    made = {"test_fraction": 0.6, "hold_out": "picture", "image_size": 16}
    assert emoji(tmp_path / "out", root=root, **made) == {"train": 7, "test": 3}
    train, test, options = open_records(
        "parquet", train=str(tmp_path / "out/train"), test=str(tmp_path / "out/test")
    )
    assert set(train.ids).isdisjoint(test.ids)
    assert load(test, options).images.shape == (3, 3, 16, 16)
    assert set(captions_of(test)) < set(captions_of(train))
    assert sorted(id // 2 for id in train.ids if id // 2 in test.ids // 2) == sorted(test.ids // 2)


@pytest.mark.parametrize(
    ("vendors", "hold_out", "message"),
    [
        (("google",), "picture", "must be 'emoji' where .*google is the only package"),
        (("google", "twitter"), "vendor", "hold_out: 'vendor', must be 'emoji' or 'picture'"),
    ],
)
def test_what_cannot_be_held_out_is_refused_with_the_remedy(tmp_path, vendors, hold_out, message):
    root = str(packages(tmp_path / "npm", vendors))
    with pytest.raises(ValueError, match=message):
        emoji(tmp_path / "out", root=root, hold_out=hold_out)
    assert not (tmp_path / "out").exists()


def test_what_is_transparent_becomes_white_and_captions_stand_in_the_file(tmp_path):
    emoji(tmp_path / "out", root=str(packages(tmp_path / "npm", ("google",))), test_fraction=0.0)
    table = pq.read_table(tmp_path / "out/train/00000.parquet")
    assert table.schema.names == ["id", "image", "label", "caption"]
    assert table["caption"][0].as_py() == "dog face, dog, sub kind, kind 0"
    train, _, options = open_records(
        "parquet", train=str(tmp_path / "out/train"), test=str(tmp_path / "out/train")
    )
    vocabulary = WordPiece.learnt(captions_of(train), 60)
    pairs = PairSet.loaded(train.subset(np.array([1, 3])), options, vocabulary, 20)
    assert pairs.captions == ("red apple, red, sub kind, kind 1", "tulip, sub kind, kind 1")
    assert pairs.images.images[:, 0, 0, 0].tolist() == [255, 255]
    assert pairs.images.images[:, 0, 1, 1].tolist() == [40, 120]
    twin = pairs.subset(np.array([1]))
    assert vocabulary.decode(twin.read(np.array([0])).arrays["tokens"][0]) == pairs.captions[1]


def test_names_are_told_once():
    names = {"name": "OWL", "short_names": ["owl", "night_owl"], "subcategory": "a-b"}
    assert caption_of(names | {"category": "C & D"}) == "owl, night owl, a b, c & d"


def test_a_folder_without_packages_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match="npm install --prefix npm emoji-datasource-google"):
        emoji(tmp_path / "out", root=str(tmp_path))


def test_images_without_captions_are_refused_with_the_remedy():
    train, _, _ = open_records("fashion_mnist_sample")
    with pytest.raises(ValueError, match="no captions; take emoji_sample, or Parquet shards"):
        captions_of(train)


def test_of_emoji_in_the_test_of_the_sample_the_other_houses_picture_is_in_training():
    train, test, _ = open_records("emoji_sample")
    assert (len(train), len(test), len(train.classes)) == (2945, 327, 8)
    others = test.ids ^ 1  # the other picture of the same emoji
    assert set(train.ids).isdisjoint(test.ids)
    assert set(others) < set(train.ids)
    assert "" not in captions_of(train) + captions_of(test)
    assert set(captions_of(test)) < set(captions_of(train))
