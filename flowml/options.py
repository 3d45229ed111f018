"""The options of a run: read from the call or the configuration, and refused before it starts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal, TypeGuard, get_args

from dask.utils import parse_timedelta

from flowml import configuration
from flowml.collect import closest
from flowml.errors import PlanError
from flowml.runtime.outcome import Order

Executor = Literal["resident", "tasks", "serial", "simulated"]
EXECUTORS: tuple[str, ...] = get_args(Executor)
NONFINITE: tuple[str, ...] = ("stop", "ignore")


@dataclass(frozen=True)
class Later:
    """Options of the contract whose time has not come, and what they wait for."""

    directory: Any = None
    resume: Any = "auto"
    checkpoint: Any = None


def refuse_other(later: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuse options that there are not, or not yet: silence would look like success.

    Parameters
    ----------
    later : mapping
        What was given beside the options that run.
    known : iterable of str
        Those that run.

    Raises
    ------
    PlanError
    """
    names = sorted({*vars(Later()), *known})
    for name, value in later.items():
        if name not in vars(Later()):
            raise PlanError(
                "graph.run",
                f"options are {', '.join(names)}",
                repr(name),
                closest(name, names).strip() or "Leave it out.",
            )
        if value != getattr(Later, name):
            raise PlanError(
                f"option {name}", "does not run in this release", repr(value), "Leave it out."
            )


def order_of(
    *,
    steps: int | None,
    epochs: int | None,
    seed: int,
    snapshots: Sequence[int],
    max_seconds: float | None,
    deadline: str | float | None,
    step_seconds: float | None,
    on_nonfinite: str | None,
    record: bool = False,
) -> Order:
    """Return what is asked of a run; the configuration fills in what was left out.

    Raises
    ------
    PlanError
        For a value that has no meaning.
    """
    return Order(
        positive("steps", steps),
        positive("epochs", epochs),
        seed=seed_of(seed),
        snapshots=_snapshots(snapshots),
        max_seconds=_seconds("max_seconds", max_seconds),
        deadline_seconds=_duration(deadline),
        longest_message=configuration.read("max-message"),
        step_seconds=_seconds("step_seconds", step_seconds) or configuration.read("step-seconds"),
        on_nonfinite=_nonfinite(on_nonfinite),
        record=_yes_or_no("record", record),
    )


def executor_of(name: str | None) -> str:
    """Return the executor, which the configuration may name."""
    chosen = configuration.read("executor") if name is None else name
    return _one_of("executor", chosen, EXECUTORS)


def _yes_or_no(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise PlanError(name, "must be True or False", repr(value))
    return value


def positive(name: str, value: int | None) -> int | None:
    """Return a number that counts something, or None where it was left out."""
    if value is None:
        return None
    if not _is_whole(value) or value < 1:
        raise PlanError(name, "must be an integer >= 1", repr(value), f"For example {name}=10.")
    return int(value)


def seed_of(value: int) -> int:
    """Return a seed."""
    if not _is_whole(value) or value < 0:
        raise PlanError("seed", "must be an integer >= 0", repr(value), "For example seed=0.")
    return int(value)


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _one_of(name: str, word: Any, known: tuple[str, ...]) -> str:
    if word not in known:
        raise PlanError(
            name,
            f"must be one of {', '.join(known)}",
            repr(word),
            closest(str(word), known).strip() or f"For example {known[0]!r}.",
        )
    return str(word)


def _snapshots(steps: Sequence[int]) -> frozenset[int]:
    if (
        isinstance(steps, str)
        or not isinstance(steps, Iterable)
        or not all(_is_whole(s) and s >= 1 for s in steps)
    ):
        raise PlanError(
            "snapshots",
            "must be numbers of steps >= 1",
            repr(steps),
            "For example snapshots=(1, 10).",
        )
    return frozenset(int(s) for s in steps)


def _seconds(name: str, value: float | None) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Real) or not value > 0:
        raise PlanError(
            name, "must be a number of seconds > 0", repr(value), "Leave it out for no limit."
        )
    return float(value)


def _duration(deadline: str | float | None) -> float:
    given = configuration.read("deadline") if deadline is None else deadline
    try:
        seconds = float(parse_timedelta(given))
    except (TypeError, ValueError, KeyError, AttributeError):
        seconds = 0.0
    if not seconds > 0:
        raise PlanError(
            "deadline", "must be a duration > 0", repr(given), 'For example deadline="60s".'
        )
    return seconds


def _nonfinite(word: str | None) -> Literal["stop", "ignore"]:
    chosen = configuration.read("on-nonfinite") if word is None else word
    return "stop" if _one_of("on_nonfinite", chosen, NONFINITE) == "stop" else "ignore"
