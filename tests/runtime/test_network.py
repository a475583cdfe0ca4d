"""Workers on hosts with several networks find each other, by the address that Ray knows."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray
import shared_training
from shared_training import STEPS, build

from raykb.engine.loop import Worker, fit
from raykb.runtime import network
from raykb.runtime.network import NodeTorchConfig, choose_interface, interface_of

DRIVER = Path(shared_training.__file__)


def addresses():
    """Name and IPv4 address of each interface, from the system's own command if it is there."""
    try:
        listed = subprocess.run(["ip", "-json", "-4", "addr"], capture_output=True, check=True)
    except FileNotFoundError:
        return [("lo", "127.0.0.1")]
    return [
        (interface["ifname"], interface["addr_info"][0]["local"])
        for interface in json.loads(listed.stdout)
        if interface["addr_info"]
    ]


@pytest.mark.parametrize(("name", "address"), addresses())
def test_the_interface_of_an_address_is_found(name, address):
    assert interface_of(address) == name


def test_an_address_that_is_nowhere_has_none_and_every_loopback_address_has():
    assert interface_of("203.0.113.7") is None
    assert interface_of("127.8.9.10") == interface_of("127.0.0.1") == "lo"


def choose(monkeypatch, address, gpu=False, **given):
    """Return what is chosen for a node of this address where ``given`` is set already."""
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "")  # so that what is set meanwhile is undone
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: address)
    choose_interface(gpu)
    return {name: value for name, value in os.environ.items() if name.endswith("_SOCKET_IFNAME")}


def test_gloo_and_on_a_gpu_nccl_use_it(monkeypatch):
    assert choose(monkeypatch, "127.0.0.1") == {"GLOO_SOCKET_IFNAME": "lo"}
    assert choose(monkeypatch, "127.0.0.1", gpu=True) == {
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "=lo",
    }


def test_what_the_user_has_set_is_left(monkeypatch):
    chosen = choose(monkeypatch, "127.0.0.1", gpu=True, GLOO_SOCKET_IFNAME="ib0")
    assert chosen == {"GLOO_SOCKET_IFNAME": "ib0", "NCCL_SOCKET_IFNAME": "=lo"}


def test_without_such_an_interface_nothing_is_set_and_a_warning_says_so(monkeypatch, caplog):
    assert choose(monkeypatch, "203.0.113.7", gpu=True) == {}
    assert "has Ray's address 203.0.113.7; if the workers do not find each other" in caplog.text


def test_the_time_out_is_handed_on():
    assert NodeTorchConfig(timeout_s=7).to_dict()["timeout_s"] == 7
    assert NodeTorchConfig().backend_cls is network._Backend


MEET = """
import datetime, os, sys
import torch.distributed as dist
from raykb.runtime.network import interface_of
rank, head, own, choose = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4] == "choose"
if choose:
    os.environ["GLOO_SOCKET_IFNAME"] = interface_of(own)
dist.init_process_group(
    "gloo", init_method=f"tcp://{head}:29511", rank=rank, world_size=2,
    timeout=datetime.timedelta(seconds=int(sys.argv[5])),
)
dist.barrier()
print("met")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("choice", "seconds", "met"), [("choose", 60, True), ("leave", 15, False)])
def test_gloo_meets_over_two_hosts_only_with_the_interface_that_is_found(
    two_hosts, choice, seconds, met
):
    # alone, gloo tries for minutes
    program = ["timeout", seconds + 10, sys.executable, "-c", MEET]
    processes = [
        subprocess.Popen(
            two_hosts.on(rank, *program, rank, two_hosts.hosts[0], host, choice, seconds),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank, host in enumerate(two_hosts.hosts)
    ]
    said = [process.communicate(timeout=90)[0] for process in processes]
    assert all(text.endswith("met\n") for text in said) is met, said


@pytest.mark.slow
def test_a_training_over_two_hosts_ends_as_one_without_ray(two_hosts, tmp_path):
    group = json.dumps({"place": "spread", "timeout_s": 20})
    options = ["--address", two_hosts.address, "--group", group]
    done = two_hosts.command(sys.executable, DRIVER, tmp_path, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    alone = build(Worker())
    fit(alone, log=lambda step, figures: None)
    found = json.loads(done.stdout.splitlines()[-1])["metrics"]
    weight = alone.evaluate("test").figures["test/weight"]
    assert found["test/weight"] == pytest.approx(weight, abs=1e-12)
    manifest = (tmp_path / "tiny" / f"step-{STEPS:08d}" / "manifest.json").read_text()
    assert len(json.loads(manifest)["parts"]) == 2
