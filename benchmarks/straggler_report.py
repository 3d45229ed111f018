"""From times to a loss to ratios, to the order that they make, and to text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median
from typing import Any, Literal

BASE = "sync"


@dataclass(frozen=True)
class Reached:
    """How long one contender took to the target, once a repetition; inf: never."""

    seconds: tuple[float, ...]
    examples: tuple[float, ...]

    @property
    def time(self) -> float:
        """The median. Unit: seconds."""
        return median(self.seconds)

    @property
    def taken(self) -> float:
        """The median. Unit: examples."""
        return median(self.examples)

    def apart(self, other: Reached, spread: float) -> bool:
        """Tell whether all of one were sooner than all of the other, and by more than a share."""
        first, last = sorted((self, other), key=lambda one: one.time)
        return max(first.seconds) < min(last.seconds) and last.time > first.time * (1 + spread)

    def numbers(self) -> dict[str, Any]:
        """Return what goes into a report; None where the target was not reached."""
        return {
            "seconds": number(self.time),
            "examples": number(self.taken),
            "each_seconds": [number(s) for s in self.seconds],
            "each_examples": [number(e) for e in self.examples],
        }


Found = Mapping[str, Reached]
"""By contender."""


def number(value: float) -> float | None:
    """Return a number that JSON has, rounded; None for infinity."""
    return round(value, 4) if math.isfinite(value) else None


def ratio(found: Found, name: str, to: str = BASE) -> float:
    """Return how many times sooner a contender is than another one."""
    return found[to].time / found[name].time if math.isfinite(found[name].time) else 0.0


def spread(found: Found) -> float:
    """Return how far repetitions of one contender lie apart: the median over all, as a share."""
    each = [max(one.seconds) / min(one.seconds) - 1 for one in found.values()]
    return median(share for share in each if math.isfinite(share))


Kind = Literal["same", "near", "swapped"]


def pairs(real: Found, made: Found) -> dict[tuple[str, str], Kind]:
    """Return for each two contenders whether virtual time has them in the order of real time.

    Returns
    -------
    dict of (sooner in real time, later) to str
        "near" where the two lie within the spread of repetitions, in real or in virtual time: their
        ranges overlap, or their medians are no farther apart than repetitions usually are. So
        there is no order to speak of.

    Examples
    --------
    >>> real = {"a": Reached((1.0, 1.1), (1, 1)), "b": Reached((2.0, 2.1), (1, 1))}
    >>> pairs(real, {"a": real["b"], "b": real["a"]})
    {('a', 'b'): 'swapped'}
    """
    kinds: dict[tuple[str, str], Kind] = {}
    spreads = [(found, spread(found)) for found in (real, made)]
    for one, other in combinations(sorted(real, key=lambda n: real[n].time), 2):
        near = not all(found[one].apart(found[other], share) for found, share in spreads)
        same = made[one].time < made[other].time
        kinds[one, other] = "near" if near else "same" if same else "swapped"
    return kinds


def tau(real: Found, made: Found) -> float:
    """Return Kendall's tau-a of the medians, near ties and all: 1 is the same order.

    Examples
    --------
    >>> found = {n: Reached((float(s),), (1,)) for n, s in zip("abc", (1, 2, 3))}
    >>> tau(found, {"a": found["b"], "b": found["a"], "c": found["c"]})
    0.333
    """
    signs = [
        _sign(real[one].time - real[other].time) * _sign(made[one].time - made[other].time)
        for one, other in combinations(real, 2)
    ]
    return round(sum(signs) / len(signs), 3)


def _sign(difference: float) -> int:
    return (difference > 0) - (difference < 0)


def world_text(says: str, real: Found, made: Found, target: float) -> str:
    """Return one world as a table."""
    lines = [
        f"{says}: to a loss of {target:g} over all examples\n{'':12}"
        f"{'real s':>9}{'(range)':>16}{'examples':>10}{'x sync':>8}"
        f"{'virtual s':>12}{'(range)':>16}{'examples':>10}{'x sync':>8}"
    ]
    for name in real:
        lines.append(f"  {name:10}{_cells(real, name)}   {_cells(made, name)}")
    return "\n".join([*lines, *order_lines(real, made), *verdict_lines(real)])


def _cells(found: Found, name: str) -> str:
    one = found[name]
    spread = f"({min(one.seconds):.2f}-{max(one.seconds):.2f})"
    return f"{one.time:9.2f}{spread:>16}{one.taken:10,.0f}{ratio(found, name):8.2f}"


def order_lines(real: Found, made: Found) -> list[str]:
    """Return whether virtual time orders the contenders as real time does."""
    kinds = pairs(real, made)
    swapped = [" before ".join(pair) for pair, kind in kinds.items() if kind == "swapped"]
    near = sum(kind == "near" for kind in kinds.values())
    said = f"swapped, as against real time: {', '.join(swapped)}" if swapped else "none swapped"
    return [
        f"  order in virtual time: Kendall's tau {tau(real, made):.2f}; of {len(kinds)} pairs "
        f"{near} are near ties (within the spread of repetitions), of the others {said}"
    ]


def verdict_lines(real: Found) -> list[str]:
    """Say who is first, and plainly where sync wins."""
    base = real[BASE]
    sooner = [n for n in real if n != BASE and max(real[n].seconds) < min(base.seconds)]
    sooner.sort(key=lambda n: real[n].time)
    fewest = min(real, key=lambda n: real[n].taken)
    if sooner:
        named = ", ".join(f"{n} ({ratio(real, n):.2f} times)" for n in sooner)
        first = f"sync loses to {named}"
    else:
        first = "SYNC WINS: nobody is sooner by more than the spread, and all others promise less"
    fewer = "sync itself" if fewest == BASE else f"{fewest} ({real[fewest].taken:,.0f})"
    return [f"  {first}", f"  fewest examples: {fewer}; sync took {base.taken:,.0f}"]


def wanted_lines(worlds: Mapping[str, Found], wanted: Sequence[tuple[str, str, float]]) -> str:
    """Return for each (world, contender, factor) whether it is so much sooner than sync."""
    lines = []
    for world, name, factor in wanted:
        found = ratio(worlds[world], name)
        says = "yes" if found >= factor else "NO"
        lines.append(f"{world}: {name} {found:.2f} times sooner than sync; {factor:g}: {says}")
    return "\n".join(lines)
