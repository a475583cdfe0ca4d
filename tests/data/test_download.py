import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raykb.data import download
from raykb.data.download import fetch, refused


class Remote:
    """A data set of two files which counts how often it is downloaded."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.downloads = 0
        self.failure = failure

    def __call__(self, folder: Path, get: bool) -> list[str]:
        paths = [folder / "one.bin", folder / "inner" / "two.bin"]
        if get:
            self.downloads += 1
            for path in paths:
                path.parent.mkdir(exist_ok=True)
                path.write_text(path.name)
                time.sleep(0.02)
                if self.failure is not None:
                    raise self.failure
        if not all(path.exists() for path in paths):
            raise RuntimeError("not found")
        return [path.read_text() for path in paths]


CONTENT = ["one.bin", "two.bin"]


def test_what_is_there_is_not_downloaded_again(tmp_path: Path):
    remote = Remote()
    for _ in range(3):
        assert fetch(remote, tmp_path / "new" / "root", name="x", download=True) == CONTENT
    assert remote.downloads == 1


def test_of_many_who_ask_one_downloads(tmp_path: Path):
    remote = Remote()
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(fetch, remote, tmp_path, name="x", download=True) for _ in range(4)]
    assert [future.result() for future in futures] == [CONTENT] * 4
    assert remote.downloads == 1


@pytest.mark.parametrize("failure", [OSError("reset"), RuntimeError("bad md5")])
def test_a_failed_download_leaves_nothing_and_says_what_to_do(tmp_path: Path, failure: Exception):
    with pytest.raises(
        ConnectionError, match=rf"(?s)cifar10 is not.*{failure}.*fashion_mnist_samp"
    ):
        fetch(Remote(failure), tmp_path, name="cifar10", download=True)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert fetch(Remote(), tmp_path, name="cifar10", download=True) == CONTENT


def test_without_leave_to_download_nothing_is_touched(tmp_path: Path):
    root = tmp_path / "absent"
    with pytest.raises(FileNotFoundError, match=r"(?s)svhn.*download is off.*prepare_data\.py"):
        fetch(Remote(), root, name="svhn", download=False)
    assert not root.exists()


def test_where_downloads_are_refused_it_is_said_what_a_run_would_get(tmp_path: Path):
    remote, root = Remote(), tmp_path / "absent"
    told = r"(?s)svhn is not.*root='.*absent'.*a run downloads it.*; a dry run does not.*--dry-run"
    with refused(), pytest.raises(FileNotFoundError, match=told):
        fetch(remote, root, name="svhn", download=True)
    assert not root.exists()
    assert remote.downloads == 0
    assert fetch(remote, root, name="svhn", download=True) == CONTENT
    with refused():
        assert fetch(remote, root, name="svhn", download=True) == CONTENT
    assert remote.downloads == 1


def test_half_a_data_set_is_made_whole(tmp_path: Path):
    (tmp_path / "one.bin").write_text("half")
    assert fetch(Remote(), tmp_path, name="x", download=True) == CONTENT


def test_a_killed_download_is_not_taken_for_the_data_set(tmp_path: Path):
    script = (
        "import os, signal, sys; from pathlib import Path; from raykb.data.download import fetch\n"
        "def remote(folder, get):\n"
        "    if not get: raise RuntimeError('not found')\n"
        "    (folder / 'one.bin').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "fetch(remote, Path(sys.argv[1]), name='x', download=True)"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False, timeout=60)
    assert killed.returncode == -9
    assert (tmp_path / ".partial" / "one.bin").exists()  # it was killed half-way
    with pytest.raises(FileNotFoundError):
        fetch(Remote(), tmp_path, name="x", download=False)
    assert fetch(Remote(), tmp_path, name="x", download=True) == CONTENT
    assert not (tmp_path / ".partial").exists()


def test_waits_are_bounded_while_downloading_only(tmp_path: Path):
    seen = []

    def remote(folder: Path, get: bool) -> None:
        seen.append(download.socket.getdefaulttimeout())
        if not get and len(seen) < 3:
            raise RuntimeError("not found")

    fetch(remote, tmp_path, name="x", download=True)
    assert seen == [None, None, 20.0, None]
    assert download.socket.getdefaulttimeout() is None
