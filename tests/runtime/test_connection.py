"""Which cluster a run uses: the one that is named, one that runs on this host, or its own."""

import socket

import pytest

from raykb.runtime.connection import cluster_address
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
