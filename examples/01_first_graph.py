"""A first graph: softmax regression on scikit-learn's digits, two replicas, synchronous SGD."""

from sklearn.datasets import load_digits

import flowml as fl

if __name__ == "__main__":
    X, y = load_digits(return_X_y=True)
    model = fl.models.softmax(n_features=64, n_classes=10)

    w = fl.table("w", model.init(seed=0))
    batch = fl.load((X / 16, y), batch_size=32)
    grads = fl.gradient(model, w, batch)
    mean = fl.aggregate("mean", grads)
    graph = fl.Graph(fl.update(w, mean, fl.sgd(lr=0.5)), name="first")
    run = graph.run(epochs=10, replicas=2)

    print(graph)
    print(f"{run.steps} steps, accuracy {model.score(run.tables['w'], X / 16, y):.3f}")
