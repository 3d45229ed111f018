"""The fixtures of conftest.py do what they say."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_info

CONFTEST = Path(__file__).with_name("conftest.py")
LEAKY = """
import os, threading, pytest

@pytest.mark.leaks
def test_file():
    {file}

@pytest.mark.leaks
def test_thread():
    {thread}
"""


def run_pytest(folder: Path, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *options],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.stdout


def project(folder: Path, tests: str) -> Path:
    short = CONFTEST.read_text().replace("LEAK_SECONDS = 10.0", "LEAK_SECONDS = 0.2")
    (folder / "conftest.py").write_text(short)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n  slow\n  needs_root\n  leaks\n")
    (folder / "test_it.py").write_text(tests)
    return folder


def test_a_test_that_leaves_a_file_or_a_thread_behind_fails(tmp_path):
    leaky = LEAKY.format(
        file="os.open(os.devnull, os.O_RDONLY)",
        thread="threading.Thread(target=threading.Event().wait, daemon=True, name='left').start()",
    )
    out = run_pytest(project(tmp_path, leaky))
    assert "file descriptors left behind" in out
    assert "/dev/null" in out
    assert "threads left behind after 10 s, among them: ['left']" in out
    assert "2 passed, 2 errors" in out


def test_slow_tests_run_on_request_only(tmp_path):
    tests = "import pytest\n@pytest.mark.slow\ndef test_slow():\n    assert True\n"
    folder = project(tmp_path, tests)
    assert "slow: run with --slow" in run_pytest(folder)
    assert "1 passed" in run_pytest(folder, "--slow")


@pytest.mark.leaks
def test_what_is_closed_in_time_is_no_leak():
    descriptor = os.open(os.devnull, os.O_RDONLY)
    thread = threading.Timer(0.1, os.close, (descriptor,))
    thread.start()
    assert thread.is_alive()


def test_blas_has_one_thread():
    assert np.dot(np.ones((8, 8)), np.ones(8)).sum() == 64
    assert {pool["num_threads"] for pool in threadpool_info()} == {1}


@pytest.mark.leaks
def test_the_cluster_has_two_processes_on_loopback(client):
    workers = client.scheduler_info(n_workers=-1)["workers"]
    assert len(workers) == 2
    assert all(address.startswith("tcp://127.0.0.1:") for address in workers)
    assert client.submit(sum, [1, 2]).result(timeout=60) == 3
