"""Where the boxes of a drawing stand and how its edges run: a layered layout, top to bottom.

Layers are the topological generations of a step; a write that closes the loop is left out of
them and drawn back up along the side. Boxes are ordered within their layers by the mean place of
their neighbours and then moved as near to them as the order allows.

References
----------
Sugiyama, Tagawa and Toda, "Methods for visual understanding of hierarchical system structures",
IEEE Transactions on Systems, Man and Cybernetics 11(2), 1981. Coordinates here: an isotonic
regression a layer, which keeps the order and the distances.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import networkx as nx

from flowml.drawing.words import Arrow, Picture

SWEEPS = 12
GAP = 36.0
"""Pixels between neighbours of a layer."""
BEND_WIDTH = 14.0
"""Pixels that an edge takes where it passes a layer."""

Spot = tuple[str, int]
"""A vertex as (name, -1), or the place where the arrow of that number passes a layer."""


@dataclass(frozen=True)
class Placing:
    """Layers and horizontal places.

    Attributes
    ----------
    layer : mapping of str to int
    centre : mapping of str to float
        Of each vertex. Pixels.
    bends : mapping of int to tuple of float
        By number of the arrow: its horizontal place in each layer between its ends. Pixels.
    width : float
        From 0 to the right end of the rightmost box. Pixels.
    """

    layer: Mapping[str, int]
    centre: Mapping[str, float]
    bends: Mapping[int, tuple[float, ...]]
    width: float

    @property
    def layers(self) -> int:
        """Number of layers."""
        return 1 + max(self.layer.values(), default=0)


def placed(picture: Picture, widths: Mapping[str, float]) -> Placing:
    """Return where everything of a picture stands.

    Parameters
    ----------
    widths : mapping of str to float
        Of the box of each vertex. Pixels.
    """
    layer = _layers(picture)
    chains = {
        number: _chain(number, arrow, layer)
        for number, arrow in enumerate(picture.arrows)
        if not arrow.loop
    }
    rows = _ordered(_rows(picture, layer, chains), chains)
    spots = {
        spot: widths.get(spot[0], 0.0) if spot[1] < 0 else BEND_WIDTH
        for row in rows
        for spot in row
    }
    x = _coordinates(rows, chains, spots)
    left = min((x[s] - w / 2 for s, w in spots.items()), default=0.0)
    right = max((x[s] + w / 2 for s, w in spots.items()), default=0.0)
    return Placing(
        layer,
        {name: at - left for (name, number), at in x.items() if number < 0},
        {number: tuple(x[s] - left for s in chain[1:-1]) for number, chain in chains.items()},
        right - left,
    )


def _layers(picture: Picture) -> dict[str, int]:
    step = nx.DiGraph()
    step.add_nodes_from(v.name for v in picture.vertices)
    step.add_edges_from((a.source, a.target) for a in picture.arrows if not a.loop)
    layer = {
        name: number
        for number, names in enumerate(nx.topological_generations(step))
        for name in names
    }
    for name in step:  # what nothing leads to stands right above its first reader
        if not step.pred[name] and step.succ[name]:
            layer[name] = min(layer[other] for other in step.succ[name]) - 1
    return layer


def _chain(number: int, arrow: Arrow, layer: Mapping[str, int]) -> list[Spot]:
    """Return the spots of an arrow: its source, a bend in each layer that it passes, its target."""
    between = range(layer[arrow.source] + 1, layer[arrow.target])
    return [(arrow.source, -1), *((f"bend {i}", number) for i in between), (arrow.target, -1)]


def _rows(
    picture: Picture, layer: Mapping[str, int], chains: Mapping[int, list[Spot]]
) -> list[list[Spot]]:
    rows: list[list[Spot]] = [[] for _ in range(1 + max(layer.values(), default=0))]
    for vertex in picture.vertices:
        rows[layer[vertex.name]].append((vertex.name, -1))
    for number, chain in chains.items():
        first = layer[picture.arrows[number].source] + 1
        for offset, spot in enumerate(chain[1:-1]):
            rows[first + offset].append(spot)
    return rows


def _ordered(rows: list[list[Spot]], chains: Mapping[int, list[Spot]]) -> list[list[Spot]]:
    """Return the rows in the order with the fewest crossings that the sweeps come by."""
    above, below = _neighbours(chains)
    best, fewest = [list(row) for row in rows], _crossings(rows, below)
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        numbers = range(1, len(rows)) if down else range(len(rows) - 2, -1, -1)
        for number in numbers:
            fixed = rows[number - 1 if down else number + 1]
            place = {spot: i for i, spot in enumerate(fixed)}
            near = above if down else below
            rows[number] = _by_mean(rows[number], near, place)
        found = _crossings(rows, below)
        if found < fewest:
            best, fewest = [list(row) for row in rows], found
    return best


def _by_mean(
    row: list[Spot], near: Mapping[Spot, list[Spot]], place: Mapping[Spot, int]
) -> list[Spot]:
    means: dict[Spot, float] = {}
    for i, spot in enumerate(row):
        found = [place[other] for other in near.get(spot, ()) if other in place]
        means[spot] = sum(found) / len(found) if found else float(i)
    return sorted(row, key=lambda spot: means[spot])


def _neighbours(
    chains: Mapping[int, list[Spot]],
) -> tuple[dict[Spot, list[Spot]], dict[Spot, list[Spot]]]:
    above: dict[Spot, list[Spot]] = {}
    below: dict[Spot, list[Spot]] = {}
    for chain in chains.values():
        for upper, lower in pairwise(chain):
            below.setdefault(upper, []).append(lower)
            above.setdefault(lower, []).append(upper)
    return above, below


def _crossings(rows: Sequence[Sequence[Spot]], below: Mapping[Spot, list[Spot]]) -> int:
    total = 0
    for upper, lower in pairwise(rows):
        place = {spot: i for i, spot in enumerate(lower)}
        ends = [
            (i, place[other])
            for i, spot in enumerate(upper)
            for other in below.get(spot, ())
            if other in place
        ]
        total += sum(
            (a[0] - b[0]) * (a[1] - b[1]) < 0 for n, a in enumerate(ends) for b in ends[:n]
        )
    return total


def _coordinates(
    rows: list[list[Spot]], chains: Mapping[int, list[Spot]], widths: Mapping[Spot, float]
) -> dict[Spot, float]:
    above, below = _neighbours(chains)
    x: dict[Spot, float] = {}
    for row in rows:
        x |= zip(row, _apart(row, [0.0] * len(row), [1.0] * len(row), widths), strict=True)
    for sweep in range(2 * SWEEPS):
        near = (above, below)[sweep % 2]
        for row in rows if sweep % 2 == 0 else reversed(rows):
            wanted = [_mean((x[o] for o in near.get(spot, ())), x[spot]) for spot in row]
            weights = [_weight(spot, near) for spot in row]
            x |= zip(row, _apart(row, wanted, weights, widths), strict=True)
    return x


def _weight(spot: Spot, near: Mapping[Spot, list[Spot]]) -> float:
    """Return how strongly a spot wants its place: long edges are to be straight."""
    neighbours = near.get(spot, ())
    straight = spot[1] >= 0 and any(other[1] >= 0 for other in neighbours)
    return 8.0 if straight else 0.1 + len(neighbours)


def _mean(values: Iterable[float], otherwise: float) -> float:
    found = list(values)
    return sum(found) / len(found) if found else otherwise


def _apart(
    row: Sequence[Spot],
    wanted: Sequence[float],
    weights: Sequence[float],
    widths: Mapping[Spot, float],
) -> list[float]:
    """Return the places nearest to those wanted that keep order and distances."""
    offsets = [0.0]
    for a, b in pairwise(row):
        offsets.append(offsets[-1] + (widths[a] + widths[b]) / 2 + GAP)
    blocks: list[tuple[float, float, int]] = []  # mean, weight, spots
    for want, offset, weight in zip(wanted, offsets, weights, strict=False):
        mean, total, count = want - offset, weight, 1
        while blocks and blocks[-1][0] > mean:
            before = blocks.pop()
            mean = (before[0] * before[1] + mean * total) / (before[1] + total)
            total, count = before[1] + total, before[2] + count
        blocks.append((mean, total, count))
    means = [mean for mean, _, count in blocks for _ in range(count)]
    return [mean + offset for mean, offset in zip(means, offsets, strict=False)]
