"""Rows by key: vectors of users and films, of which each replica moves only those in its batch.

A sparse table has a row for each key that somebody has asked for, made at first touch from the key
alone. `.at(ids)` stands behind a read, and behind the target of a write; gradients of equal ids are
added up before the rule sees them.
"""

import numpy as np

import flowml as fl

USERS, FILMS, TASTES = 300, 200, 3


def opinions(seed=0):
    """Return who saw what, shape (n, 2), and what they thought of it, with some noise."""
    rng = np.random.default_rng(seed)
    users, films = rng.normal(size=(USERS, TASTES)), rng.normal(size=(FILMS, TASTES))
    seen = np.argwhere(rng.random((USERS, FILMS)) < 0.3)
    marks = (users[seen[:, 0]] * films[seen[:, 1]]).sum(1) + rng.normal(0, 0.1, len(seen))
    return seen, marks


@fl.value_and_grad
def squared_error(vectors, marks):
    """Return the mean of half the squared errors, and gradients of their sum, row by row."""
    user, film = vectors
    error = (user * film).sum(1) - marks
    slopes = error[:, None] * film, error[:, None] * user
    return float(np.mean(error**2) / 2), slopes


def build(source):
    """Return the graph; nobody waits for anybody, and rows that two replicas want are rare."""
    start = fl.init.normal(0.3, seed=1)
    users = fl.sparse_table("users", TASTES, start, "float64")
    films = fl.sparse_table("films", TASTES, start, "float64")
    batch = fl.load(source, batch_size=200)
    user, film, marks = fl.map(
        lambda rows: (rows[0][:, 0], rows[0][:, 1], rows[1]), batch, outputs=3, name="columns"
    )
    read = users.async_().at(user), films.async_().at(film)
    to_user, to_film = fl.gradient(squared_error, read, marks)
    return fl.Graph(
        fl.update(users.at(user), to_user, fl.adagrad(0.1)),
        fl.update(films.at(film), to_film, fl.adagrad(0.1)),
        name="films",
    )


if __name__ == "__main__":
    seen, marks = opinions()
    held = np.random.default_rng(1).random(len(marks)) < 0.1
    run = build((seen[~held], marks[~held])).run(epochs=15, replicas=2)

    users, films = run.tables["users"], run.tables["films"]  # keys, and a row for each
    found = (users.at(seen[held, 0]) * films.at(seen[held, 1])).sum(1)
    error = np.sqrt(np.mean((found - marks[held]) ** 2))
    print(f"{len(users)} users, {len(films)} films; keys {users.keys[:5]}...")
    print(f"error of opinions held back: {error:.2f}; their own spread: {marks.std():.2f}")
