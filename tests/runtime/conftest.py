"""Two hosts on one machine, for the tests that need more than one."""

import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from shared_hosts import TwoHosts


@pytest.fixture(scope="module")
def two_hosts(home):
    """Two hosts with a Ray cluster of one CPU each; skips where namespaces are not permitted."""
    if shutil.which("ip") is None:
        pytest.skip("there is no command `ip` (apt-get install iproute2) to make namespaces with")
    folder = Path(tempfile.mkdtemp(prefix="rkb", dir="/tmp"))  # socket paths are short
    hosts = TwoHosts(folder)
    try:
        try:
            hosts.connect()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not permitted here: {error.stderr.strip()}")
        hosts.start()
        yield hosts
    finally:
        hosts.stop()
        shutil.rmtree(folder, ignore_errors=True)
