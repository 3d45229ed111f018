"""One line instead of hundreds when ``if __name__ == "__main__"`` is missing.

A process of an embedded cluster imports the user's script first. A script that starts a run at its
top level would start a cluster of its own inside that import, and so on; Python refuses it with a
long traceback in every process, and Dask starts the processes again.
"""

from __future__ import annotations

import ast
import multiprocessing
import os
import sys
import threading
from pathlib import Path
from types import FrameType

MESSAGE = (
    "flowml: error: {place} starts a run while it is imported. Processes of an embedded cluster "
    'import it too: put the run under if __name__ == "__main__":'
)


def refuse_inherited_start() -> None:
    """End a program that would start an embedded cluster while its script is imported.

    Raises
    ------
    SystemExit
        In the driver, before any process is started: the message is all that is printed. It
        passes through the thread of the run to the one that waits for it.

    Notes
    -----
    Where the script cannot be read, a started process finds out: it prints the line and leaves
    at once, since an exception would be the first of many. Elsewhere this does nothing. The flag
    ``_inheriting`` is not public; checked with Python 3.11 to 3.13.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        print(MESSAGE.format(place="this script"), file=sys.stderr, flush=True)
        os._exit(1)
    line = unguarded_line()
    if line is not None:
        raise SystemExit(MESSAGE.format(place=line))


def unguarded_line() -> str | None:
    """Return ``file:line`` of the script's top level that is running and not under an ``if``.

    Notes
    -----
    None in a notebook, under ``python -m package``, in a function called from a guarded line, and
    wherever started processes would not import the script again.
    """
    script = sys.modules.get("__main__")
    path = getattr(script, "__file__", None)
    spec = getattr(script, "__spec__", None)
    if path is None or (spec is not None and spec.name.endswith("__main__")):
        return None
    line = _running_line(path)
    if line is None:
        return None
    try:
        statements = ast.parse(Path(path).read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return None
    for statement in statements:
        if statement.lineno <= line <= (statement.end_lineno or statement.lineno):
            guarded = isinstance(statement, ast.If)
            return None if guarded else f"{Path(path).name}:{line}"
    return None


def _running_line(path: str) -> int | None:
    """Return the line of a file's top level at which the main thread is."""
    frame: FrameType | None = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_code.co_filename == path:
            return frame.f_lineno
        frame = frame.f_back
    return None
