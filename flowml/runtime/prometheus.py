"""Numbers for the ``/metrics`` pages of Dask's scheduler and workers.

Dask serves the process-wide registry of prometheus_client where that is installed (extra
``prometheus``). A registry takes each name once, while several workers may live in one process: so
one collector a process asks all who have something to tell. Without prometheus_client nothing
happens here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Sample:
    """One number with its labels.

    Attributes
    ----------
    name : str
        With its unit; a counter without "_total", which Prometheus adds.
    help : str
    kind : "gauge" or "counter"
    value : float
    labels : tuple of (str, str)
        The same names for each sample of a name. Never a run: its names do not end.
    """

    name: str
    help: str
    kind: Literal["gauge", "counter"]
    value: float
    labels: tuple[tuple[str, str], ...] = ()


Source = Callable[[], Iterable[Sample]]


@dataclass(eq=False)
class Collector:
    """What prometheus_client asks for the samples of this process."""

    sources: list[Source] = field(default_factory=list)

    def collect(self) -> Iterator[Any]:
        """Yield the metrics, samples of one name together and equal labels added up."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        kinds = {"gauge": GaugeMetricFamily, "counter": CounterMetricFamily}
        families: dict[str, tuple[Sample, dict[tuple[str, ...], float]]] = {}
        for sample in [s for source in self.sources for s in source()]:
            _, values = families.setdefault(sample.name, (sample, {}))
            key = tuple(value for _, value in sample.labels)
            values[key] = values.get(key, 0.0) + sample.value
        for first, values in families.values():
            names = [name for name, _ in first.labels]
            family = kinds[first.kind](first.name, first.help, labels=names)
            for key, value in values.items():
                family.add_metric(key, value)
            yield family


COLLECTOR = Collector()
"""The one of this process: so is the registry."""


def export(source: Source) -> None:
    """Let a source tell its samples; nothing happens without prometheus_client."""
    try:
        from prometheus_client import REGISTRY
    except ImportError:
        return
    if not COLLECTOR.sources:
        REGISTRY.register(COLLECTOR)
    COLLECTOR.sources.append(source)


def withdraw(source: Source) -> None:
    """Ask a source no more; harmless if it never was."""
    if source not in COLLECTOR.sources:
        return
    from prometheus_client import REGISTRY

    COLLECTOR.sources.remove(source)
    if not COLLECTOR.sources:
        REGISTRY.unregister(COLLECTOR)
