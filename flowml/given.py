"""What a function of the user was given when it raised, noted on the exception itself.

Rules and reductions are called in the middle of loops over buffers, which know the arguments of a
call and not its place; the place is known further up. So the arguments travel with the exception.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

NOTE = "_flowml_given"


def note_given(error: BaseException, inputs: tuple[Any, ...]) -> None:
    """Note the arguments of a call on what it raised; the innermost call counts."""
    if given_to(error) is None:
        with suppress(AttributeError, TypeError):  # an exception that takes no attributes
            setattr(error, NOTE, inputs)


def given_to(error: BaseException) -> tuple[Any, ...] | None:
    """Return the arguments that were noted, or None.

    Examples
    --------
    >>> error = ValueError("no")
    >>> note_given(error, (1, 2))
    >>> given_to(error), given_to(KeyError("w"))
    ((1, 2), None)
    """
    found: tuple[Any, ...] | None = getattr(error, NOTE, None)
    return found
