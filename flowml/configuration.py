"""Defaults of flowml, as a part of Dask's configuration.

Importing this module adds the ``flowml:`` section of ``flowml.yaml`` to `dask.config`, below what
the user has written in a YAML file or in the environment. No file is written. The configuration
of a client does not reach workers that run already, so what is read here is frozen in the plan.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.config
from dask.utils import parse_bytes, parse_timedelta

from flowml.errors import PlanError

_FOLDER = Path(__file__).parent


def _seconds(value: str | float) -> float:
    return float(parse_timedelta(value))


_PARSERS: dict[str, Callable[[Any], float]] = {
    "deadline": _seconds,
    "step-seconds": _seconds,
    "window": _seconds,
    "max-message": parse_bytes,
    "own-copies": parse_bytes,
}

DEFAULTS: dict[str, Any] = next(dask.config.collect_yaml([str(_FOLDER / "flowml.yaml")]))["flowml"]
"""The keys of ``flowml.yaml`` with the values that they have when nobody says otherwise."""

dask.config.update_defaults({"flowml": DEFAULTS})


def read(key: str) -> Any:
    """Return a configured value: durations in seconds, sizes in bytes.

    Parameters
    ----------
    key : str
        A key of ``flowml.yaml``, such as ``"deadline"``; underscores count as hyphens.

    Returns
    -------
    str, bool, int, float or None
        A float in seconds for a duration, an int in bytes for a size, else what is written.

    Raises
    ------
    PlanError
        If the key is unknown, or a duration or size cannot be read.

    Examples
    --------
    >>> with dask.config.set({"flowml.deadline": "2 minutes", "flowml.max-message": "1 MiB"}):
    ...     read("deadline"), read("max-message")
    (120.0, 1048576)
    """
    name = key.replace("_", "-")
    if name not in DEFAULTS:
        raise PlanError(
            "configuration", f"a key must be one of {', '.join(DEFAULTS)}", repr(key), key=key
        )
    value = dask.config.get(f"flowml.{name}")
    if value is None or name not in _PARSERS:
        return value
    try:
        return _PARSERS[name](value)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        example = DEFAULTS[name] or "30s"
        raise PlanError(
            f"configuration flowml.{name}",
            "a duration or a size must be a number with its unit",
            repr(value),
            f"For example {example}.",
            key=name,
        ) from error
