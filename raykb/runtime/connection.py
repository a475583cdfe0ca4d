"""The cluster of a run: found or started, this package brought to it, its disks looked at."""

import contextlib
import json
import os
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import raykb
from raykb.runtime.head import answers
from raykb.runtime.retrying import PATIENCE, patience_s
from raykb.runtime.session import Refused
from raykb.runtime.storage import LocalStorage, Storage

JOB_ENVIRONMENT = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray sets this variable, which has this very name, for the driver of a submitted job."""

EXIT_FAILED, EXIT_REFUSED = 1, 2
_SHARED = "/dev/shm"
_LATE = "timed out during startup"  # the only sign of it in Ray's exception, which is of no type


def cluster_address() -> str | None:
    """Return the address of the cluster to connect to, or None if a local Ray is to be started."""
    if address := os.environ.get("RAY_ADDRESS"):
        if address == "local":  # as Ray itself reads it: a new one, whatever runs on this host
            return None
        if "://" not in address and ":" in address and not answers(address):
            raise Refused(
                f"RAY_ADDRESS: no cluster answers at {address!r}; start one with `ray start "
                "--head`, or unset RAY_ADDRESS to have a local Ray"
            )
        return address
    address = _noted(_temporary() / "ray_current_cluster")
    # `ray start` leaves its address there, also when it has been killed since
    return address if address and answers(address) else None


def _noted(note: Path) -> str:
    """Return the address in Ray's note of the current cluster; empty if there is none to follow.

    Anybody may write to the folder of temporary files, and who is connected to a cluster runs what
    it says. So a note counts if it and its folder are of this user, or of root, who can do all
    that anyway, and if not everybody may write into it. Any other is passed over and said.
    """
    try:
        file = os.fdopen(os.open(note, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
    except FileNotFoundError:
        return ""
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    else:
        with file:
            opened, folder = os.fstat(file.fileno()), note.parent
            owners = {opened.st_uid, folder.stat().st_uid, folder.lstat().st_uid}
            strangers = sorted(owners - {os.geteuid(), 0})
            if not strangers and stat.S_ISREG(opened.st_mode) and not opened.st_mode & stat.S_IWOTH:
                return file.read(1000).decode(errors="replace").strip()
        problem = f"belongs to user {strangers[0]}" if strangers else "is no file of one user alone"
    print(
        f"{note}: {problem}, so the cluster that it names is passed over; to use that, set "
        "RAY_ADDRESS to its address",
        file=sys.stderr,
    )
    return ""


@contextlib.contextmanager
def connected(where: str | None) -> Iterator[None]:
    """Connect to a cluster, or start a local Ray; end only what was started here.

    A process that is connected already stays so: several runs can share one Ray.
    """
    if ray.is_initialized():
        yield
        return
    private_token()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # leave CUDA_VISIBLE_DEVICES alone in workers without a GPU; Ray warns where nobody has chosen
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if where is None:
        paths = [str(_package().parent), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))  # workers inherit it
        free = _free_to_share()
        try:
            ray.init(address="local", include_dashboard=False, **quiet)
        except Exception as error:
            if _LATE not in str(error):
                raise
            raise Refused(
                f"Ray did not start within the 30 s that it gives itself, on {os.cpu_count()} CPUs "
                f"at a load of {os.getloadavg()[0]:.1f}; go on by --resume when they have less to "
                "do, or run `ray start --head` once, whose Ray all runs use"
            ) from error
        _say_if_on_disk(free, ray.cluster_resources().get("object_store_memory", 0.0))
    else:
        try:
            ray.init(address=where, runtime_env=_runtime_env(), **quiet)
        except ConnectionError as error:
            raise Refused(
                f"RAY_ADDRESS: no cluster answers at {where!r}, or it asks for a token that is not "
                "given (RAY_AUTH_MODE=token, RAY_AUTH_TOKEN); start one with `ray start --head`, "
                "or set RAY_ADDRESS=local to have a local Ray"
            ) from error
    private_token()  # Ray may have made it just now
    _say_if_open()
    try:
        yield
    finally:
        ray.shutdown()


def _free_to_share() -> int | None:
    """Return the bytes that are free in the memory that processes share; None without any."""
    try:
        found = os.statvfs(_SHARED)
    except OSError:
        return None
    return found.f_bsize * found.f_bavail


def _say_if_on_disk(free: int | None, wanted: float) -> None:
    """Say so if Ray's object store is on a disk, which it is where shared memory is too small."""
    if free is not None and free < wanted:
        print(
            f"{_SHARED}: {free / 2**20:,.0f} MiB are free, and Ray's object store is to hold "
            f"{wanted / 2**20:,.0f} MiB, so it is on a disk, below {_temporary()}. The run goes "
            "on, slower where data are large; give it more (docker run --shm-size=8g, or mount -o "
            f"remount,size=8g {_SHARED})",
            file=sys.stderr,
        )


def _temporary() -> Path:
    return Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray"


def private_token() -> None:
    """Make the file of this user's token readable by its owner alone; Ray leaves it to the umask.

    Another one's file, as a secret that Kubernetes mounts, is left as it is.
    """
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        state = path.stat()
        if state.st_uid == os.geteuid() and state.st_mode & 0o077:
            path.chmod(0o600)
    except OSError:  # there is none, or it lies where nothing can be changed
        return


def _say_if_open() -> None:
    """Say so if whoever reaches the ports of this cluster may run what he likes on it.

    A Ray of 2.60 or later that is started here asks for a token unless it is told not to; one of
    before asks for none unless it is told to, and so does one of ``ray start``.
    """
    address = ray.util.get_node_ip_address()
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "token" or address.startswith("127."):
        return
    print(
        f"Ray {ray.__version__} at {address} asks for no token: whoever reaches its ports runs "
        "code as this user. Set RAY_AUTH_MODE=token, for `ray start` on every node, too (`ray "
        "get-auth-token --generate` makes one), or let nobody else reach this network",
        file=sys.stderr,
    )


def _runtime_env() -> dict[str, Any] | None:
    """Return what brings this package to the workers; a job's working directory already does."""
    shipped = json.loads(os.environ.get(JOB_ENVIRONMENT, "{}")).get("runtime_env", {})
    if shipped.get("working_dir") or shipped.get("py_modules"):
        return None
    patience = {PATIENCE: f"{patience_s():g}"}
    return {"py_modules": [str(_package())], "env_vars": patience}


def _package() -> Path:
    return Path(raykb.__file__).resolve().parent


def check_shared(
    storage: Storage, record: str, here: str, nodes: Sequence[Mapping[str, Any]]
) -> None:
    """Refuse a local run directory that another host of the cluster does not see.

    Args:
        storage: the run directory.
        record: a file that is in it.
        here: address of this host.
        nodes: of the cluster, as ``ray.nodes`` returns them; nodes of one host have one address.
    """
    others = {node["NodeManagerAddress"]: node["NodeID"] for node in nodes if node["Alive"]}
    others.pop(here, None)
    if not isinstance(storage, LocalStorage):
        return
    for host, node in others.items():
        if not _sees(storage, record, node):
            raise Refused(
                f"storage: {storage.uri} on {here} is not seen by {host}; with several hosts name "
                "a folder that all of them mount, or an object store: --set storage=/nfs/… or "
                "--set storage=s3://…"
            )


def _sees(storage: LocalStorage, record: str, node: str) -> bool:
    """Return whether ``node`` finds the run's record in ``storage``."""
    strategy = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
    look = ray.remote(LocalStorage.exists).options(num_cpus=0, scheduling_strategy=strategy)
    return bool(ray.get(look.remote(storage, record), timeout=60))
