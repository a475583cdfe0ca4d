"""The search in a process of its own goes on beside all other tests of the folder.

It takes half a minute, most of which its driver and the tests would wait for each other.
"""

from pathlib import Path

import pytest
import running

FOLDER = Path(__file__).parent
SEARCH = "begun_search"


@pytest.fixture(scope="session")
def begun_search(home, tmp_path_factory):
    """A folder and what waits for the search there, which writes ``run``, to end."""
    folder = tmp_path_factory.mktemp("search")
    with running.begun("fastaa_search", folder, *running.TINY_SEARCH, "--out", "run") as end:
        yield folder, end


@pytest.hookimpl(trylast=True)  # after marks and names have left tests out
def pytest_collection_modifyitems(items):
    """Begin the search with the first test of this folder, if one needs it; have that file last."""
    own = [item for item in items if item.path.parent == FOLDER]
    waiting = {item.path for item in own if SEARCH in item.fixturenames}
    if waiting:
        own.sort(key=lambda item: item.path in waiting)
        places = [place for place, item in enumerate(items) if item.path.parent == FOLDER]
        for place, item in zip(places, own, strict=True):
            items[place] = item
        own[0].fixturenames = [SEARCH, *own[0].fixturenames]
