"""Runs graphs side by side, each on several numbers of replicas, beside a plain NumPy loop."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, TypeAlias

from rich.console import Console

from flowml.appraisal import Subject, sampled, score_name, subject_of
from flowml.compare.comparison import Comparison
from flowml.compare.numpy_loop import fits, numpy_trial
from flowml.compare.rows import NUMPY, named
from flowml.compare.trial import IN_PROCESS, Task, Trial, run_trial
from flowml.data.accept import as_source
from flowml.errors import PlanError
from flowml.options import executor_of, positive
from flowml.run import Graph
from flowml.runtime.attach import attached

Build: TypeAlias = Graph | Callable[[int], Graph]
"""A graph, or what makes one for a number of replicas."""

Place: TypeAlias = tuple[str, int]
"""Name of a graph, and replicas."""

DEFAULT_EPOCHS = 10
POINTS = 16
JUDGED_EXAMPLES = 10_000
"""Training examples that the losses of the curves are taken over, evenly out of all."""


def compare(
    graphs: Mapping[str, Build],
    *,
    replicas: Sequence[int] = (1, 2),
    target_loss: float | None = None,
    steps: int | None = None,
    epochs: int | None = None,
    test: Any = None,
    cluster: Any = None,
    executor: str | None = None,
    seed: int = 0,
    max_seconds: float | None = None,
    points: int = POINTS,
    repetitions: int = 1,
    numpy: bool = True,
    progress: bool | None = None,
) -> Comparison:
    """Run graphs side by side: who comes to a training loss first, and at what price.

    Parameters
    ----------
    graphs : mapping of str to Graph, or to a function of the number of replicas
        The first one says which model and rule the plain NumPy loop has.
    replicas : sequence of int
        1 is added: speed-ups are against one replica of the same graph.
    target_loss : float, optional
        The training loss that times are to. Left out: the lowest that all rows come to, but
        those that do not get half of the way from the first loss to the best of all.
    steps, epochs : int, optional
        Length of each run, whichever comes first; 10 epochs when both are left out.
    test : source, optional
        Examples for the test metric, as ``fl.load`` takes them.
    cluster : Client, Cluster, str, optional
        As for a run; an embedded one serves all runs.
    executor, seed, max_seconds
        As for a run; ``executor="simulated"`` compares in virtual time.
    points, repetitions : int
        Losses along each run; how often all runs are made in turn, whose median time counts.
    numpy : bool
        Run the plain NumPy loop too, where the first graph is one of gradients and a rule.

    Returns
    -------
    Comparison
        ``print`` it, ``.to_pandas()``, ``.report(path)``.

    Raises
    ------
    PlanError
        If a graph has no gradient of one load, or an option has no meaning. A run that fails or
        diverges is a row that says so.
    """
    counts = tuple(sorted({1, *(_count(n) for n in replicas)}))
    name = executor_of(executor)
    built = _built(graphs, counts)
    subjects = {key: subject_of(graph.logical) for key, graph in built.items()}
    subject = next(iter(subjects.values()))
    task = Task(
        positive("steps", steps),
        positive("epochs", epochs) or (None if steps else DEFAULT_EPOCHS),
        max_seconds,
        seed,
        name,
        None,
        positive("points", points) or POINTS,
        sampled(subject.source, JUDGED_EXAMPLES),
        None if test is None else as_source(test),
    )
    rounds = positive("repetitions", repetitions) or 1
    with_numpy = numpy and name != "simulated"
    with _seats(name, cluster, max(counts)) as found, _telling(progress) as tell:
        task = replace(task, cluster=found)
        trials = [t for _ in range(rounds) for t in _round(built, subjects, task, with_numpy, tell)]
    return Comparison(
        trials,
        target_loss,
        score=score_name(subject.model),
        drawings={key: graph.to_svg() for (key, count), graph in built.items() if count == 1},
        virtual=name == "simulated",
    )


def _round(
    built: Mapping[Place, Graph],
    subjects: Mapping[Place, Subject],
    task: Task,
    with_numpy: bool,
    tell: Callable[[str], None],
) -> Iterator[Trial]:
    """Run everything once: the plain loop first, then each graph on each number of replicas."""
    first = next(iter(built))
    init = [built[first].logical.table(name).init for name in subjects[first].tables]
    if with_numpy and fits(subjects[first], init):
        tell(NUMPY)
        yield numpy_trial(subjects[first], init, task)
    for (name, count), graph in built.items():
        tell(named(name, count))
        yield run_trial(name, graph, count, subjects[name, count], task)


def _count(number: Any) -> int:
    found = positive("replicas", number)
    if found is None:
        raise PlanError("replicas", "must be integers >= 1", repr(number), "Try replicas=(1, 2).")
    return found


def _built(graphs: Mapping[str, Build], counts: Sequence[int]) -> dict[Place, Graph]:
    """Return each graph for each number of replicas."""
    if not isinstance(graphs, Mapping) or not graphs:
        raise PlanError(
            "fl.compare",
            "needs a mapping of names to graphs",
            "none" if isinstance(graphs, Mapping) else f"a {type(graphs).__name__}",
            'For example fl.compare({"ssgd": graph}).',
        )
    found = {}
    for name, given in graphs.items():
        for count in counts:
            graph = (
                given if isinstance(given, Graph) else given(count) if callable(given) else given
            )
            if not isinstance(graph, Graph):
                got = f"a {type(graph).__name__}"
                raise PlanError(f"fl.compare {name!r}", "must be a fl.Graph or make one", got)
            found[str(name), count] = graph
    return found


@contextmanager
def _seats(executor: str, cluster: Any, count: int) -> Iterator[Any]:
    """Yield the client that all runs share; None where they run in this process."""
    if executor in IN_PROCESS:
        yield None
        return
    with attached(cluster, count) as found:
        yield found.client


@contextmanager
def _telling(progress: bool | None) -> Iterator[Callable[[str], None]]:
    """Yield a function that shows what runs, on a terminal only."""
    console = Console(file=sys.stderr)
    shows = console.is_terminal if progress is None else progress
    with console.status("") if shows else nullcontext() as status:
        yield (lambda words: status.update(words)) if status is not None else (lambda words: None)
