"""What is checked of the parameters and the values that a codec is given, and how it is spelled."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt

from flowml.codecs.contract import Codec
from flowml.errors import GraphError
from flowml.types import calling_site


def spelling(codec: str, *parameters: float, feedback: bool, usual: bool) -> str:
    """Return a codec as the user writes it: different codecs are spelled differently."""
    words = [str(p) for p in parameters]
    if feedback is not usual:
        words.append(f"feedback={feedback}")
    return f"{codec}({', '.join(words)})"


def is_number(value: object) -> bool:
    """Tell whether a parameter is a real number; a bool is none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def share(codec: str, fraction: float) -> float:
    """Return a share of the entries, refused unless it is > 0 and <= 1."""
    if not is_number(fraction) or not 0 < fraction <= 1:
        raise refusal(f"{codec}(fraction) needs a number > 0 and <= 1", fraction, "0.01")
    return fraction


def refusal(required: str, got: object, example: str) -> GraphError:
    """Return the error for a parameter, at the line of the user's file."""
    site = calling_site()
    return GraphError(str(site), required, repr(got), f"For example {example}.", site=site)


def float_dtype(codec: Codec, dtype: npt.DTypeLike) -> np.dtype[Any]:
    """Return a dtype that the codecs of flowml work on: float32 or float64 in native order.

    Raises
    ------
    GraphError
        For any other dtype.
    """
    found = np.dtype(dtype)
    if found != np.float32 and found != np.float64:
        fix = "Leave .compress out on this edge, or cast before it."
        raise GraphError(str(codec), "a codec takes float32 or float64", str(found), fix)
    return found
