"""Iterative map-reduce: k-means, whole shares, until the centres stand still."""

import numpy as np

import flowml as fl


def totals(centres, rows):
    """Return sums and counts of the rows nearest to each centre."""
    nearest = ((rows[:, None] - centres) ** 2).sum(2).argmin(1)
    members = (nearest[:, None] == np.arange(len(centres))).astype(float)
    return {"sums": members.T @ rows, "counts": members.sum(0)}


def means(centres, total):
    """Return the new centres; one without rows stays where it is."""
    counts = total["counts"][:, None]
    return np.where(counts > 0, total["sums"] / np.maximum(counts, 1), centres)


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.normal(m, 0.3, (500, 2)) for m in ((0, 0), (3, 0), (0, 3))])

    centres = fl.table("centres", rows[[0, 500, 1000]])
    share = fl.load(rows, batch_size=None)
    total = fl.aggregate("sum", fl.map(totals, centres, share))
    fresh = fl.assign(centres, fl.map(means, centres, total))
    moved = fl.map(lambda old, new: np.abs(new - old).max(), centres, fresh, name="moved")
    graph = fl.Graph(fresh, fl.until(lambda distance: distance < 1e-9, moved), name="kmeans")

    run = graph.run(steps=100, replicas=2, executor="tasks")
    print(run.status, "after", run.steps, "steps\n", run.tables["centres"].round(2))
