"""Process groups that find the right network by themselves.

On a host with several interfaces gloo takes the one that the host's name resolves to, often the
loopback, to which no other host can connect. The right one carries the address under which Ray
knows the node.
"""

import fcntl
import logging
import os
import socket
import struct
from dataclasses import dataclass
from typing import Any

import ray
from ray.train.torch import TorchConfig

_logger = logging.getLogger(__name__)

_SIOCGIFADDR = 0x8915  # ioctl of Linux: the IPv4 address of an interface


def interface_of(address: str) -> str | None:
    """Return the name of the interface of this host that has an IPv4 ``address``, or None."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode())
            try:
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
            except OSError:  # it has none
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return "lo" if address.startswith("127.") else None


def choose_interface(gpu: bool) -> None:
    """Have gloo, and with ``gpu`` NCCL too, use the interface of this node's Ray address.

    What the user has set is left; without such an interface the libraries choose, with a warning.
    """
    address = ray.util.get_node_ip_address()
    interface = interface_of(address)
    if interface is None:
        _logger.warning(
            "no network interface of this host has Ray's address %s; if the workers do not find "
            "each other, set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME on every host",
            address,
        )
        return
    os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    if gpu:
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={interface}")  # "=": not as a prefix


class _Backend(TorchConfig().backend_cls):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        gpu = worker_group.get_resources_per_worker().get("GPU", 0) > 0
        worker_group.execute(choose_interface, gpu)
        super().on_start(worker_group, backend_config)


@dataclass
class NodeTorchConfig(TorchConfig):
    """Ray Train's process group, over the network by which Ray knows each node."""

    @property
    def backend_cls(self) -> Any:
        """The backend that chooses the interface before it starts the process group."""
        return _Backend
