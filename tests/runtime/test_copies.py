"""One replica reads one table with several codecs: each reader has what its own codec makes."""

from __future__ import annotations

from typing import Any

import dask
import numpy as np
import pytest
from distributed import Client

import flowml as fl
from flowml.compiler.stages import compile_graph
from flowml.runtime.loose_plan import split

START = np.linspace(-1.0, 1.0, 7)
HALF, EIGHT = fl.codecs.float16(), fl.codecs.int8(feedback=False)
CODECS: dict[str, Any] = {"plain": None, "half": HALF, "eight": EIGHT}
STEPS, ROWS = 9, 36


def through(codec: Any, values: Any) -> Any:
    """Return what the other end has of some values."""
    if codec is None:
        return values
    payload, _ = codec.encode(values, codec.init(values.shape, values.dtype, 0))
    return codec.decode(payload, values.shape, values.dtype)


def pulled(w: Any, by: float) -> Any:
    return 0.3 * (by - w)


def graph(names: tuple[str, ...], every: int = 1, mark: Any = lambda w: w) -> fl.Graph:
    """Return a graph with a reader for each name, whose values are added up."""
    w = fl.table("w", START)
    batch = fl.load(np.zeros((ROWS, 1)), batch_size=2)
    found = []
    for number, name in enumerate(names):
        read = mark(w) if CODECS[name] is None else mark(w).compress(CODECS[name])
        value = fl.map(
            lambda w, rows, by=number + 1.0: pulled(w, by), read, batch, name=f"from_{number}"
        )
        found.append(value)
    total = fl.map(lambda *values: np.sum(values, 0), *found, name="total")
    mean = fl.aggregate("mean", total if every == 1 else total.every(every, keep="last"))
    return fl.Graph(fl.update(w, mean, fl.add()))


def reference(names: tuple[str, ...], every: int) -> Any:
    """Return the table after all steps: every replica makes the same of it."""
    w = START.copy()
    for step in range(STEPS):
        read = [through(CODECS[name], w) for name in names]
        made = np.sum([pulled(r, n + 1.0) for n, r in enumerate(read)], 0)
        if (step + 1) % every == 0:
            w = w + made
    return w


NAMES = [
    ("plain", "half"),
    ("half", "plain"),
    ("half", "eight"),
    ("eight", "plain", "half", "plain", "eight"),
]


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("names", NAMES)
def test_each_reader_has_its_own(names: tuple[str, ...], every: int) -> None:
    """With a period the version that is known stays for some steps, and nothing is read anew."""
    run = graph(names, every).run(steps=STEPS, replicas=2, executor="serial", record=True)
    np.testing.assert_allclose(run.tables["w"], reference(names, every), rtol=0, atol=1e-12)
    read = {"plain": 7 * 8, "half": 7 * 2, "eight": 7 + 8}
    versions = -(-STEPS // every)
    for number, name in enumerate(names):
        first = name not in names[:number]  # those of one codec share a copy
        counts = run.ledger.edge(f"w -> from_{number}")
        assert counts.bytes == (2 * versions * read[name] if first else 0)
    assert run.replay().tables["w"].tobytes() == run.tables["w"].tobytes()


@pytest.mark.parametrize("transport", ["auto", "rpc"])
@pytest.mark.parametrize("names", NAMES[-2:])
def test_on_workers_as_in_the_serial_executor(
    names: tuple[str, ...], transport: str, client: Client
) -> None:
    with dask.config.set({"flowml.transport": transport}):
        run = graph(names, 2).run(steps=STEPS, replicas=2)
    truth = graph(names, 2).run(steps=STEPS, replicas=2, executor="serial")
    assert run.tables["w"].tobytes() == truth.tables["w"].tobytes()


def test_there_is_a_copy_for_each_codec_and_no_more() -> None:
    loose = split(compile_graph(graph(NAMES[-1]).logical, 2))
    assert loose.copies == ("w", "w (copy 2)", "w (copy 3)", "w (copy 2)", "w")
    assert loose.copied() == {"w": "w", "w (copy 2)": "w", "w (copy 3)": "w"}
    assert [table.name for table in loose.local.tables] == ["w", "w (copy 2)", "w (copy 3)"]
    assert loose.tables == ("w",)


@pytest.mark.parametrize(("names", "copies"), [(("half", "half"), 1), (NAMES[-1], 3)])
def test_copies_count_in_the_memory_of_a_run(names: tuple[str, ...], copies: int) -> None:
    """Two versions that all share, and the copies of two replicas."""
    memory = graph(names).explain(replicas=2).memory
    assert memory is not None
    assert memory.tables == (2 + 2 * copies) * START.nbytes


def test_a_rule_that_compares_sees_the_copy_of_the_first_reader() -> None:
    """Thirds are no halves of a power of two, so that the two copies are told apart."""
    w = fl.table("w", START / 3)
    batch = fl.load(np.zeros((ROWS, 1)), batch_size=2)
    first = fl.map(lambda w, rows: w, w.async_().compress(HALF), batch, name="first")
    both = fl.map(lambda v, w: v - w, first, w.async_(), name="both")

    def step(params: Any, update: Any, state: Any, at: Any, out: Any) -> None:
        out[...] = at.read

    rule = fl.Rule(fl.add().init, step, reads=True, name="as_read")
    run = fl.Graph(fl.update(w, both, rule)).run(steps=1, replicas=1, executor="serial")
    assert run.tables["w"].tolist() == (START / 3).astype(np.float16).tolist()
    assert run.tables["w"].tolist() != (START / 3).tolist()
