"""A thousand replicas in virtual time: what rare slow steps cost under each promise.

One step in 500 takes ten times as long. Of a thousand replicas some one is slow in nearly every
step, and who waits for all of them waits for it. The arithmetic and the promises are those of a
real run; how long things take is drawn from a seed, so the same call gives the same times.
"""

from sklearn.datasets import load_digits

import flowml as fl

PROMISES = {"sync": lambda w: w.sync(), "stale(3)": lambda w: w.stale(3)}
REPLICAS, STEPS = 1000, 6


def build(read):
    """Return SGD on the mean gradient of all replicas, two rows each."""
    X, y = load_digits(return_X_y=True)
    model = fl.models.softmax(64, 10)
    w = fl.table("w", model.init(seed=0))
    grads = fl.gradient(model, read(w), fl.load((X / 16, y), batch_size=2))
    return fl.Graph(fl.update(w, fl.aggregate("mean", grads), fl.sgd(lr=0.5)), name="thousand")


if __name__ == "__main__":
    compute = fl.simulate.Compute(seconds=0.01, spread=0.1, slow_share=0.002, slow_factor=10)
    network = fl.simulate.Network(latency=0.001, bandwidth=1e8)
    for name, read in PROMISES.items():
        run = build(read).simulate(
            replicas=REPLICAS, steps=STEPS, compute=compute, network=network, seed=0
        )
        waits = run.history["wait_seconds"].sum() / run.history["seconds"].sum()
        print(f"{name:<9} {run.seconds:.2f} virtual seconds, {waits:.0%} of the time waiting")
