"""What ``flowml doctor`` looks at: what this machine has, and what would slow a run or stop it."""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
import platform
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import dask
from threadpoolctl import threadpool_info

from flowml import configuration
from flowml.errors import PlanError
from flowml.runtime.cores import usable_cores

TRIM = "MALLOC_TRIM_THRESHOLD_"
PACKAGES = ("flowml", "dask", "distributed", "numpy", "scipy", "scikit-learn", "optree")
EXTRAS = ("pandas", "pyarrow")
DASHBOARD_PORT = 8787


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes
    ----------
    name : str
    status : {"ok", "warn"}
    found : str
    advice : str
        What to do; empty where nothing needs to be done.
    """

    name: str
    status: Literal["ok", "warn"]
    found: str
    advice: str = ""


def examine() -> list[Finding]:
    """Return all findings; starts no cluster and leaves nothing behind."""
    return [finding for check in CHECKS for finding in check()]


def _versions() -> Iterator[Finding]:
    found = {name: version(name) for name in PACKAGES}
    text = f"Python {platform.python_version()}, " + ", ".join(f"{n} {v}" for n, v in found.items())
    same = found["dask"] == found["distributed"]
    advice = "" if same else "Install the same release of dask and distributed."
    yield Finding("versions", "ok" if same else "warn", text, advice)
    missing = [name for name in EXTRAS if importlib.util.find_spec(name) is None]
    if missing:
        yield Finding(
            "extras",
            "warn",
            f"{', '.join(missing)} not installed",
            'CSV and Parquet files need them: pip install "flowml[dataframe]".',
        )
    else:
        yield Finding("extras", "ok", f"{', '.join(EXTRAS)} installed")


def _system() -> Iterator[Finding]:
    name = f"{platform.system()} {platform.release()}, {platform.machine()}"
    advice = (
        ""
        if sys.platform == "linux"
        else (
            "Tested on Linux; replicas here exchange over Dask's own connections, which is slower."
        )
    )
    yield Finding("system", "ok" if not advice else "warn", name, advice)
    cores, all_cores = usable_cores(), os.cpu_count() or 1
    found = f"{cores} of {all_cores} usable by this process"
    limited = cores < all_cores
    advice = "Pass replicas= no larger than the usable cores." if limited else ""
    yield Finding("cores", "warn" if limited else "ok", found, advice)


def _blas() -> Iterator[Finding]:
    libraries = [i for i in threadpool_info() if i["user_api"] == "blas"]
    if not libraries:
        yield Finding(
            "BLAS",
            "warn",
            "no BLAS that threadpoolctl knows",
            "Products may use all cores in each replica; set OMP_NUM_THREADS=1.",
        )
    for library in libraries:
        kind = f"{library['internal_api']} {library['version'] or ''}".strip()
        yield Finding(
            "BLAS",
            "ok",
            f"{kind}, {library['num_threads']} threads here; a run sets "
            f"{configuration.read('blas-threads')} a replica",
        )


def _allocator() -> Iterator[Finding]:
    value = os.environ.get(TRIM)
    nanny = dask.config.get("distributed.nanny.pre-spawn-environ", default={}) or {}
    for_workers = nanny.get(TRIM)
    if sys.platform != "linux" or ctypes.util.find_library("c") is None:
        yield Finding(TRIM, "ok", "no glibc here: not used")
        return
    found = f"{value or 'unset'} here, {for_workers or 'unset'} for workers"
    if value is not None and int(value) < 2**20:
        yield Finding(
            TRIM,
            "warn",
            found,
            "Memory is given back after every step, which makes "
            f"them up to twice as long: unset {TRIM}.",
        )
    else:
        yield Finding(TRIM, "ok", f"{found}; flowml undoes Dask's small value in workers")


def _memory_files() -> Iterator[Finding]:
    try:
        descriptor = os.memfd_create("flowml-doctor")
    except (AttributeError, OSError) as error:
        yield Finding(
            "memfd",
            "warn",
            f"{type(error).__name__}: {error}",
            "Replicas of one host share an unlinked file instead; it needs TMPDIR.",
        )
    else:
        os.close(descriptor)
        yield Finding("memfd", "ok", "shared memory without a name, gone with its last process")
    there = Path("/dev/shm").is_dir()
    yield Finding("/dev/shm", "ok", f"{'there' if there else 'not there'}; not needed")


def _unix_sockets() -> Iterator[Finding]:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind("\0" + os.urandom(16).hex())  # abstract: leaves no file
            listener.listen(1)
    except (AttributeError, OSError) as error:
        yield Finding(
            "unix sockets",
            "warn",
            f"{type(error).__name__}: {error}",
            "Replicas of one host exchange over Dask's own connections, which is slower.",
        )
    else:
        yield Finding("unix sockets", "ok", "abstract names work")


def _ports() -> Iterator[Finding]:
    try:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
    except OSError as error:
        yield Finding(
            "loopback",
            "warn",
            str(error),
            "An embedded cluster listens on 127.0.0.1 "
            "only and needs it: check the firewall or the sandbox.",
        )
        return
    yield Finding(
        "loopback", "ok", "127.0.0.1 can be listened on; an embedded cluster listens nowhere else"
    )
    with socket.socket() as listener:
        taken = False
        try:
            listener.bind(("127.0.0.1", DASHBOARD_PORT))
        except OSError:
            taken = True
    found = "taken: the dashboard gets another port" if taken else "free"
    yield Finding(f"port {DASHBOARD_PORT}", "ok", found)


def _dask_configuration() -> Iterator[Finding]:
    changed = []
    for key, default in configuration.DEFAULTS.items():
        try:
            configuration.read(key)
        except PlanError as error:
            yield Finding("configuration", "warn", str(error), "Correct it, or remove it.")
            continue
        value = dask.config.get(f"flowml.{key}", default)
        if value != default:
            changed.append(f"flowml.{key} = {value}")
    yield Finding("configuration", "ok", ", ".join(changed) or "flowml: defaults")
    address = dask.config.get("scheduler-address", default=None)
    if address:
        yield Finding(
            "scheduler-address",
            "warn",
            str(address),
            "Dask's configuration names a "
            "scheduler: clients connect to it. Unset it for an embedded cluster.",
        )


def _data_folder() -> Iterator[Finding]:
    folder = os.environ.get("FLOWML_DATA")
    if folder is None:
        yield Finding("FLOWML_DATA", "ok", "unset: data are named by path, or digits")
        return
    names: list[str] = []
    with suppress(OSError):
        names = sorted(p.name for p in Path(folder).iterdir() if p.is_dir())
    status: Literal["ok", "warn"] = "ok" if names else "warn"
    advice = "" if names else "There is nothing to read in it: correct the variable."
    yield Finding("FLOWML_DATA", status, f"{folder}: {', '.join(names) or 'empty'}", advice)


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _versions,
    _system,
    _blas,
    _allocator,
    _memory_files,
    _unix_sockets,
    _ports,
    _dask_configuration,
    _data_folder,
)
