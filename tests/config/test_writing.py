import yaml

from raykb.config import diff, dump, flatten, load


def test_flatten_gives_text_by_dotted_key():
    config = {"a": {"b": 1, "c": {"d": None}}, "e": [1, "x"], "f": {}, "g": "no", "h": 1e-4}
    assert flatten(config) == {
        "a.b": "1",
        "a.c.d": "null",
        "e": '[1, "x"]',
        "f": "{}",
        "g": "no",
        "h": "0.0001",
    }
    assert flatten({"a": 1}, prefix="run.") == {"run.a": "1"}


def test_what_is_dumped_is_read_back_as_it_was(write):
    shared = {"x": 1}
    texts = ["1e-3", "no", "None", "08", "012", "1:30", "nan", "2026-01-01", "", "null", "é", "3"]
    config = {"texts": texts, "b": shared, "c": shared, "f": 1e-5, "g": -3e20, "t": (1, 2)}
    assert load(write(dump(config)), {}) == {**config, "t": [1, 2]}
    assert "&" not in dump(config)


def test_dump_keeps_the_order_and_plain_yaml_reads_it():
    config = {"z": 1, "a": {"q": True, "b": None}}
    assert list(yaml.safe_load(dump(config))) == ["z", "a"]
    assert yaml.safe_load(dump(config)) == config


def test_diff_reads_aloud():
    old = {"search": {"width": 40, "rounds": 2}, "seed": 0}
    new = {"search": {"width": 80}, "seed": 0, "split": {"k": [1]}}
    assert diff(old, new) == [
        "search.rounds: 2 -> (absent)",
        "search.width: 40 -> 80",
        "split.k: (absent) -> [1]",
    ]
    assert diff(old, old) == []
    assert diff(old, new, leaving_out=["search.rounds", "split", "see"]) == [
        "search.width: 40 -> 80"
    ]
    assert diff(old, new, leaving_out=["search", "split"]) == []
