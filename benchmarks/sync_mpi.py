"""MPI Allreduce between two processes; run as a program by mpirun, which sync_step.py starts."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from sync_case import (
    REPLICAS,
    Case,
    Examples,
    Loop,
    batch_stream,
    parameters_after,
    seconds_a_step,
)
from sync_numpy import NumpyLoop
from threadpoolctl import threadpool_limits

from flowml.runtime.loop_settings import keep_freed_memory

LAUNCHERS = ("mpirun", "mpiexec")
RUN_SECONDS = 300.0


def launcher() -> str | None:
    """Return the program that starts MPI processes, also one beside this Python."""
    places = os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)])
    return next(filter(None, (shutil.which(name, path=places) for name in LAUNCHERS)), None)


def missing() -> str:
    """Say what is not installed; empty when nothing is missing."""
    lacks = [] if importlib.util.find_spec("mpi4py") else ["mpi4py"]
    return " and ".join([*lacks, *([] if launcher() else [" or ".join(LAUNCHERS)])])


class Mpi:
    """Starts the program anew for each question: mpirun has no processes that wait for more."""

    def __init__(self, examples: Examples, folder: str) -> None:
        self._examples, self._answer = examples, Path(folder) / "mpi.npz"

    def seconds(self, case: Case, steps: int) -> float:
        """Return the wall time of a step."""
        return float(self._ask("seconds", case, steps)["seconds"])

    def parameters(self, case: Case, steps: int) -> dict[str, Any]:
        """Return the parameters after some steps."""
        return self._ask("parameters", case, steps)

    def _ask(self, verb: str, case: Case, steps: int) -> dict[str, Any]:
        question = json.dumps(
            [verb, asdict(case), steps, asdict(self._examples), str(self._answer)]
        )
        program = [str(launcher()), "-n", str(REPLICAS), sys.executable, __file__, question]
        allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        ended = subprocess.run(
            program,
            env=os.environ | allowed,
            timeout=RUN_SECONDS,
            capture_output=True,
            text=True,
            check=False,
        )
        if ended.returncode:
            raise RuntimeError(f"{program[0]} ended with {ended.returncode}:\n{ended.stderr}")
        with np.load(self._answer) as found:
            return dict(found)


def main(question: str) -> None:
    """Answer one question as one of the MPI processes; the first one writes the file."""
    from mpi4py import MPI  # in the program alone: the module is imported without MPI too

    verb, case_fields, steps, examples_fields, answer = json.loads(question)
    case, examples, world = Case(**case_fields), Examples(**examples_fields), MPI.COMM_WORLD
    keep_freed_memory()
    threadpool_limits(1, user_api="blas")
    rank = world.Get_rank()
    batches = batch_stream(examples.share(REPLICAS, rank), rank, case.batch)
    loop: Loop = NumpyLoop(
        case.new_model(), batches, lambda flat: world.Allreduce(MPI.IN_PLACE, flat), REPLICAS
    )
    found: dict[str, Any]
    if verb == "seconds":
        own = seconds_a_step(loop, steps, world.Barrier)
        found = {"seconds": world.allreduce(own, op=MPI.MAX)}
    else:
        found = parameters_after(loop, steps)
    if rank == 0:
        np.savez(answer, **found)


if __name__ == "__main__":
    main(sys.argv[1])
