"""``flowml new``: a small file with a graph of one's own to start from."""

from __future__ import annotations

from pathlib import Path

import click

from flowml.cli.endings import reported

STARTER = '''"""A graph of my own: synchronous SGD on a loss written in NumPy.

Run it:   python {name}
or:       flowml run {name} --data digits --replicas 2 --epochs 5
Look:     flowml show {name}        flowml explain {name} --replicas 4
"""

import numpy as np

import flowml as fl


def loss(params, batch):
    """Return the mean cross entropy of softmax regression; autograd differentiates it."""
    X, y = batch
    scores = X @ params["W"] + params["b"]
    scores = scores - np.max(scores, axis=1, keepdims=True)
    log_norm = np.log(np.sum(np.exp(scores), axis=1))
    return np.mean(log_norm - scores[np.arange(len(y)), y])


def build(source, *, lr=0.2, batch_size=32, n_features=64, n_classes=10):
    """Return the graph: change what an edge promises, or what happens between, and run again."""
    init = {{"W": np.zeros((n_features, n_classes), "float32"),
            "b": np.zeros(n_classes, "float32")}}
    w = fl.table("w", init)
    batch = fl.load(source, batch_size=batch_size)
    grads = fl.gradient(loss, w, batch)
    mean = fl.aggregate("mean", grads)  # the edge to it: grads.every(4), for example
    return fl.Graph(fl.update(w, mean, fl.sgd(lr)), name="{stem}")


if __name__ == "__main__":  # processes of a cluster import this file, too
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    graph = build(((X / 16).astype("float32"), y.astype("int64")))
    print(graph)
    run = graph.run(epochs=5, replicas=2)
    print(run, "mean loss of the last step:", run.history.mean_loss()[1][-1])
'''


@click.command(name="new")
@click.argument("file", type=click.Path(dir_okay=False))
@reported
def new_command(file: str) -> None:
    """Write a small graph of your own to start from."""
    path = Path(file)
    if path.suffix != ".py":
        raise click.UsageError(f"{file} must end in .py")
    if path.exists():
        raise click.UsageError(f"{file} is there already")
    path.write_text(STARTER.format(name=path.name, stem=path.stem), encoding="utf-8")
    click.echo(f"wrote {file}; next: flowml show {file}, flowml run {file} --epochs 5")
