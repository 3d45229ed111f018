"""Processes of their own for contenders: started once, asked again and again, always ended."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any, Literal, Protocol, TypeAlias

from sync_case import Case, Examples, Loop, parameters_after, seconds_a_step
from threadpoolctl import threadpool_limits

from flowml.runtime.loop_settings import keep_freed_memory

ANSWER_SECONDS = 300.0
END_SECONDS = 5.0

Question: TypeAlias = tuple[Literal["seconds", "parameters"], Case, int, int]
"""What is asked, the setting, the number of steps, and of BLAS threads."""


@dataclass(frozen=True)
class Seat:
    """What one process of a contender is told."""

    rank: int
    examples: Examples
    barrier: Any
    """Of ``multiprocessing``, for all processes of the contender."""
    meeting: str
    """A file that the processes may use to find each other."""


class Role(Protocol):
    """What a contender is in one process."""

    def open(self, case: Case) -> Loop:
        """Return a loop that starts from the model's first parameters."""


def serve(role: str, seat: Seat, pipe: Connection) -> None:
    """Answer questions until the other end is closed."""
    keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    try:
        module, name = role.split(":")
        made: Callable[[Seat], Role] = getattr(import_module(module), name)
        player = made(seat)
        pipe.send(("ready", None))
        while True:
            verb, case, steps, threads = pipe.recv()
            threadpool_limits(threads, user_api="blas")
            loop = player.open(case)
            if verb == "seconds":
                pipe.send((verb, seconds_a_step(loop, steps, seat.barrier.wait)))
            else:
                pipe.send((verb, parameters_after(loop, steps)))
    except EOFError:
        return
    except BaseException:  # whatever it is, the process that asks has to hear of it
        pipe.send(("error", traceback.format_exc()))
        raise


class Team:
    """The processes of one contender.

    Parameters
    ----------
    role : str
        "module:class", made in each process with its `Seat`; what it imports stays out of here.
    """

    def __init__(self, role: str, count: int, examples: Examples, meeting: str = "") -> None:
        spawn = get_context("spawn")
        self._barrier = spawn.Barrier(count)  # kept: a barrier that is let go has no name
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(count):
            ours, theirs = spawn.Pipe()
            seat = Seat(rank, examples, self._barrier, meeting)
            member = spawn.Process(target=serve, args=(role, seat, theirs), daemon=True)
            member.start()
            theirs.close()  # so that the end of the process is an end of file here
            self._pipes.append(ours)
            self._processes.append(member)

    def ready(self) -> None:
        """Wait until every process has its data."""
        self._answers()

    def seconds(self, case: Case, steps: int, threads: int = 1) -> float:
        """Return the wall time of a step, that of the process which took longest."""
        return float(max(self._ask(("seconds", case, steps, threads))))

    def parameters(self, case: Case, steps: int, threads: int = 1) -> dict[str, Any]:
        """Return the parameters after some steps."""
        found: dict[str, Any] = self._ask(("parameters", case, steps, threads))[0]
        return found

    def close(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            pipe.close()
        for member in self._processes:
            member.join(END_SECONDS)
            if member.is_alive():
                member.kill()
                member.join()

    def _ask(self, question: Question) -> list[Any]:
        for pipe in self._pipes:
            with suppress(BrokenPipeError):  # what it said before it ended is read below
                pipe.send(question)
        return self._answers()

    def _answers(self) -> list[Any]:
        """Return one answer a process; the first that fails ends the waiting for the others."""
        found: dict[int, Any] = {}
        while len(found) < len(self._pipes):
            pending = [p for n, p in enumerate(self._pipes) if n not in found]
            arrived = wait(pending, ANSWER_SECONDS)
            if not arrived:
                raise TimeoutError(f"no answer in {ANSWER_SECONDS:g} s")
            for pipe in arrived:
                assert isinstance(pipe, Connection)
                number = self._pipes.index(pipe)
                try:
                    verb, value = pipe.recv()
                except EOFError:
                    raise RuntimeError(f"process {number} of a contender has ended") from None
                if verb == "error":
                    raise RuntimeError(f"process {number} of a contender failed:\n{value}")
                found[number] = value
        return [found[n] for n in range(len(self._pipes))]


@dataclass(frozen=True)
class Threaded:
    """A team that computes with another number of BLAS threads; several may share it."""

    team: Team
    threads: int

    def seconds(self, case: Case, steps: int) -> float:
        """Return the wall time of a step."""
        return self.team.seconds(case, steps, self.threads)

    def parameters(self, case: Case, steps: int) -> dict[str, Any]:
        """Return the parameters after some steps."""
        return self.team.parameters(case, steps, self.threads)
