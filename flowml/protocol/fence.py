"""One check of run and incarnation, the same for messages, tasks and links."""

from __future__ import annotations

from flowml.errors import StaleRunError

RUN_BYTES = 16
"""Length of a run's identity: 128 random bits."""


def fence(where: str, run: bytes, incarnation: int, got_run: bytes, got_incarnation: int) -> None:
    """Pass what belongs to this run and incarnation; refuse everything else.

    Parameters
    ----------
    where : str
        What was received, for the message.
    run, incarnation : bytes, int
        The run and incarnation that the receiver is in.
    got_run, got_incarnation : bytes, int
        The run and incarnation that came with the message.

    Raises
    ------
    StaleRunError
        With ``run``, ``incarnation``, ``got_run``, ``got_incarnation`` (runs as hexadecimal
        text) and ``newer``: True when the message is of a later incarnation of the same run,
        so that it is the receiver that is out of date.
    """
    if got_run == run and got_incarnation == incarnation:
        return
    newer = got_run == run and got_incarnation > incarnation
    if got_run != run:
        required = f"must belong to run {run.hex()[:8]} (incarnation {incarnation})"
        got = f"run {got_run.hex()[:8]} (incarnation {got_incarnation})"
    else:
        required = f"must belong to incarnation {incarnation} of run {run.hex()[:8]}"
        got = f"incarnation {got_incarnation}"
    raise StaleRunError(
        where,
        required,
        got,
        "The receiver is out of date." if newer else "The sender is out of date.",
        run=run.hex(),
        incarnation=incarnation,
        got_run=got_run.hex(),
        got_incarnation=got_incarnation,
        newer=newer,
    )
