"""Which cluster a run uses: the one that is named, one that runs on this host, or its own."""

import os
import socket
import subprocess
import sys
import textwrap

import pytest

from raykb.runtime import connection
from raykb.runtime.connection import cluster_address, connected, private_token
from raykb.runtime.session import Refused


@pytest.fixture
def noted(tmp_path, monkeypatch):
    """A host on which `ray start` has left its address, and something answers there."""
    (tmp_path / "ray").mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        (tmp_path / "ray" / "ray_current_cluster").write_text(address)
        yield address


def test_a_cluster_on_this_host_is_used_unless_another_or_a_local_one_is_named(noted, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS")
    assert cluster_address() == noted
    monkeypatch.setenv("RAY_ADDRESS", "ray://elsewhere:10001")
    assert cluster_address() == "ray://elsewhere:10001"
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert cluster_address() is None


def test_a_cluster_that_has_ended_is_passed_over_where_it_was_noted_and_refused_where_it_is_named(
    tmp_path, monkeypatch
):
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:9")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS")
    assert cluster_address() is None
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(Refused, match=r"no cluster answers at '127\.0\.0\.1:9'"):
        cluster_address()


@pytest.mark.parametrize("whose", ["ray", "ray/ray_current_cluster"])
def test_a_note_of_another_user_is_passed_over_and_said(
    noted, whose, tmp_path, monkeypatch, capsys
):
    monkeypatch.delenv("RAY_ADDRESS")
    if os.geteuid() == 0:
        other = 12345
        os.chown(tmp_path / whose, other, -1)
    else:  # only root can give a file away; so this process is somebody else
        other = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: other + 1)
    assert cluster_address() is None
    said = capsys.readouterr().err
    assert f"ray_current_cluster: belongs to user {other}, so the cluster that it names" in said
    monkeypatch.setenv("RAY_ADDRESS", noted)
    assert cluster_address() == noted


def test_a_note_that_is_no_file_or_that_anybody_can_write_is_passed_over_and_said(
    noted, tmp_path, monkeypatch, capsys
):
    monkeypatch.delenv("RAY_ADDRESS")
    note = tmp_path / "ray" / "ray_current_cluster"
    note.chmod(0o666)
    assert cluster_address() is None
    assert "is no file of one user alone" in capsys.readouterr().err
    note.rename(tmp_path / "note")
    note.symlink_to(tmp_path / "note")
    assert cluster_address() is None
    assert "cannot be read (Too many levels of symbolic links)" in capsys.readouterr().err
    note.unlink()
    os.mkfifo(note, 0o600)
    assert cluster_address() is None
    assert "is no file of one user alone" in capsys.readouterr().err


# ---------------------------------------------------------------------- who may come in


@pytest.fixture
def no_ray(monkeypatch):
    """A Ray that is not started, at whatever address the test says."""
    monkeypatch.setattr(connection.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(connection.ray, "shutdown", lambda: None)
    monkeypatch.setattr(connection.ray, "init", lambda **options: None)
    resources = {"object_store_memory": 64.0 * 2**20}
    monkeypatch.setattr(connection.ray, "cluster_resources", lambda: resources)

    def at(address, mode):
        monkeypatch.setattr(connection.ray.util, "get_node_ip_address", lambda: address)
        monkeypatch.setenv("RAY_AUTH_MODE", mode)

    return at


SHARED = """
    import numpy as np
    import ray
    from raykb.runtime.connection import connected

    with connected(None):
        values = ray.put(np.ones(2**24))
        print(ray.get(ray.remote(lambda given: given.sum()).remote(values)))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_with_little_shared_memory_it_is_said_and_what_is_larger_is_shared_nevertheless(tmp_path):
    mount = 'mount -t tmpfs -o size=64m tmpfs /dev/shm && "$@"'
    own = ["unshare", "--mount", "sh", "-c"]
    if os.geteuid() or subprocess.run([*own, mount, "sh", "true"], capture_output=True).returncode:
        pytest.skip("/dev/shm cannot be mounted for a process of its own here, as by root")
    done = subprocess.run(
        [*own, mount, "sh", sys.executable, "-c", textwrap.dedent(SHARED)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert float(done.stdout) == 2**24  # of 128 MiB, where 64 can be shared
    assert "/dev/shm: 64 MiB are free, and Ray's object store is to hold" in done.stderr
    assert "docker run --shm-size=8g" in done.stderr


@pytest.mark.parametrize(("free", "told"), [(2**20, True), (2**30, False), (None, False)])
def test_an_object_store_on_a_disk_is_said(no_ray, monkeypatch, capsys, free, told):
    no_ray("127.0.0.1", "token")
    monkeypatch.setattr(connection, "_free_to_share", lambda: free)
    with connected(None):
        pass
    assert (
        "1 MiB are free, and Ray's object store is to hold 64 MiB" in capsys.readouterr().err
    ) == told


def test_a_ray_that_does_not_start_in_time_is_said_in_a_line(no_ray, monkeypatch):
    def late(**_):
        raise Exception("The current node timed out during startup. This could happen because ...")

    monkeypatch.setattr(connection.ray, "init", late)
    with pytest.raises(Refused, match=r"within the 30 s .* go on by --resume"), connected(None):
        pass


@pytest.mark.parametrize("where", [None, "10.0.0.7:6379"])
@pytest.mark.parametrize(
    ("address", "mode", "told"),
    [
        ("10.0.0.7", "disabled", True),
        ("10.0.0.7", "", True),
        ("10.0.0.7", "token", False),
        ("127.0.0.1", "disabled", False),
    ],
)
def test_a_cluster_beyond_this_host_that_asks_for_no_token_is_said(
    no_ray, capsys, where, address, mode, told
):
    no_ray(address, mode)
    with connected(where):
        pass
    said = capsys.readouterr().err
    assert ("at 10.0.0.7 asks for no token: whoever reaches its ports runs code" in said) == told
    assert ("Set RAY_AUTH_MODE=token" in said) == told


def test_the_file_of_the_token_is_its_owner_s_alone_also_if_ray_has_just_made_it(
    no_ray, tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    private_token()  # there is none
    no_ray("10.0.0.7", "token")
    file = tmp_path / ".ray" / "auth_token"
    file.parent.mkdir()
    monkeypatch.setattr(connection.ray, "init", lambda **options: file.write_text("a token"))
    with connected(None):
        assert file.stat().st_mode & 0o777 == 0o600
    other = tmp_path / "mounted"
    other.write_text("a token")
    other.chmod(0o644)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(other))
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: other.stat().st_uid + 1)
        private_token()
    assert other.stat().st_mode & 0o777 == 0o644  # somebody else's
    private_token()
    assert other.stat().st_mode & 0o777 == 0o600
