"""How a command ends: a message without a traceback, and an exit code that a script can read."""

from __future__ import annotations

import functools
import os
import signal
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

import click

from flowml.errors import (
    DivergedError,
    FlowmlError,
    OperatorError,
    StaleRunError,
    StalledError,
    WorkerLostError,
)
from flowml.runtime.failed_call import KEPT
from flowml.types import PACKAGE

WRONG_GRAPH, DIVERGED, CLUSTER_LOST, OPERATOR_FAILED = 1, 3, 4, 5
INTERRUPTED, TERMINATED = 130, 143
CODES: tuple[tuple[type[FlowmlError], int], ...] = (
    (DivergedError, DIVERGED),
    (WorkerLostError, CLUSTER_LOST),
    (StaleRunError, CLUSTER_LOST),
    (OperatorError, OPERATOR_FAILED),
    (StalledError, OPERATOR_FAILED),
    (FlowmlError, WRONG_GRAPH),
)

NOT_OF_THE_USER = (str(PACKAGE), *(sysconfig.get_path(name) for name in ("stdlib", "purelib")))

QUIET_TRACKER = "ignore:resource_tracker:UserWarning"
"""Handed to the process that multiprocessing starts to clean up after us: when a command is
interrupted while its cluster starts, it cleans up, and would warn that there was something."""

Command = TypeVar("Command", bound=Callable[..., Any])


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a run as Ctrl-C does."""


def exit_code(error: BaseException) -> int:
    """Return the exit code for what ended a command.

    Examples
    --------
    >>> exit_code(DivergedError("operator 'g'", "the loss must be finite")), exit_code(OSError())
    (3, 1)
    """
    if isinstance(error, Terminated):
        return TERMINATED
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return next((code for kind, code in CODES if isinstance(error, kind)), WRONG_GRAPH)


def message(error: BaseException) -> str:
    """Return what the user is told: an error of flowml says where itself; others get a place."""
    if isinstance(error, KeyboardInterrupt):
        word = "terminated" if isinstance(error, Terminated) else "interrupted"
        run = getattr(error, "run", None)
        if run is not None and run.status == "stopped":
            return f"{word} after step {run.steps}"
        return word
    if isinstance(error, FlowmlError):
        return str(error).replace(KEPT, "--failures FOLDER keeps its input.")
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<")
        and not any(Path(frame.filename).is_relative_to(folder) for folder in NOT_OF_THE_USER)
    ]
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}: " if frames else ""
    if isinstance(error, SyntaxError) and error.filename:
        where = f"{Path(error.filename).name}:{error.lineno}: "
        return f"{where}{type(error).__name__}: {error.msg}"
    return f"{where}{type(error).__name__}: {error}"


def reported(command: Command) -> Command:
    """Let a command end with a message on stderr and an exit code, whatever is raised in it."""

    @click.option(
        "--traceback", "with_traceback", is_flag=True, help="Show the whole traceback of an error."
    )
    @functools.wraps(command)
    def run(*args: Any, with_traceback: bool, **options: Any) -> Any:
        with terminations():
            try:
                return command(*args, **options)
            except (click.ClickException, click.exceptions.Exit, click.Abort):
                raise
            except (Exception, KeyboardInterrupt) as error:
                if with_traceback:
                    traceback.print_exc()
                leave(error)

    return run  # type: ignore[return-value]


def leave(error: BaseException) -> NoReturn:
    """Print the message of an error and exit with its code."""
    code, run = exit_code(error), getattr(error, "run", None)
    asked = code in (INTERRUPTED, TERMINATED)
    click.echo(f"flowml: {'' if asked else 'error: '}{message(error)}", err=True)
    if asked and run is not None and run.status == "running":
        # Its step did not end in time. Nothing is left to save, and processes of an embedded
        # cluster leave with this one, so there is nobody to wait for.
        sys.stdout.flush()
        os._exit(code)
    raise click.exceptions.Exit(code)


@contextmanager
def terminations() -> Iterator[None]:
    """Turn SIGTERM into an exception while a command runs, where this is the main thread."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    if QUIET_TRACKER not in sys.warnoptions:
        sys.warnoptions.append(QUIET_TRACKER)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
