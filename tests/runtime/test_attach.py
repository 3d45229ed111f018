"""The embedded cluster: loopback only, quiet, also when Dask's usual port is taken."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from distributed import Client, get_client

from flowml.errors import WorkerLostError
from flowml.runtime.attach import attached, embedded_cluster

LISTEN = "0A"


def listening_of(pids: set[int]) -> set[tuple[str, int]]:
    """Return the (address, port) pairs that some processes listen on."""
    inodes = set()
    for pid in pids:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            target = os.readlink(entry) if entry.is_symlink() else ""
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTEN and fields[9] in inodes:
                address, port = fields[1].split(":")
                found.add((address, int(port, 16)))
    return found


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads Linux's table of sockets")
def test_embedded_cluster_listens_on_loopback_only() -> None:
    with embedded_cluster(2) as cluster, Client(cluster, set_as_default=False) as client:
        pids = set(client.run(os.getpid).values()) | {os.getpid()}
        found = listening_of(pids)
        dashboard = cluster.dashboard_link
    loopback = "0100007F"
    assert found
    assert {address for address, _ in found} == {loopback}
    assert dashboard.startswith("http://127.0.0.1:")


def test_embedded_cluster_when_the_usual_port_is_taken(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with socket.socket() as taken:
        try:
            taken.bind(("127.0.0.1", 8787))
            taken.listen()
        except OSError:
            pass  # somebody else has it: as good
        with pytest.raises(ValueError, match="No global client"):
            get_client(timeout="1s")  # with a current client, it would be the cluster
        with attached(None, 1) as found:
            assert found.embedded
            assert len(found.workers()) == 1
    assert "8787" not in capfd.readouterr().err


def test_nobody_at_the_address() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(WorkerLostError, match=rf"127.0.0.1:{port}: a scheduler must answer there"):
        with attached(f"tcp://127.0.0.1:{port}", 1):
            pass


def test_a_missing_scheduler_file() -> None:
    with pytest.raises(WorkerLostError, match=r"the scheduler file must exist"):
        with attached("no-such-file.json", 1):
            pass


def test_the_current_client_is_taken_and_left_open(client: Client) -> None:
    with attached(None, 2) as found:
        assert found.client is client
        assert not found.embedded
    assert client.status == "running"
