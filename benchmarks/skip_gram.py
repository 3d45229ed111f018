"""Word vectors of real books by graphs/skip_gram.py: words a second, and what they are worth.

    FLOWML_DATA=folder python benchmarks/skip_gram.py [--epochs 1] [--replicas 2] [--words 30000]
                       [--dimensions 100] [--lr 0.1] [--window 5] [--batch 128] [--json FILE]
    python benchmarks/skip_gram.py --quick

The text is ``classic-books/books.txt.xz``, words are what ``[a-z]+`` finds in lower case, and those
that are not among the most frequent are left out, as word2vec leaves them out. After each epoch the
cosines of ``word-eval/wordsim353.tsv`` (Finkelstein et al., 2002) are set against what people said,
by Spearman's rank correlation; pairs with a word that is not in the vocabulary are not counted.
Words a second are words of the text over the wall time of the steps, evaluations too, on an
embedded cluster of a process a replica.
``--quick`` takes a small text that it makes up.
"""

from __future__ import annotations

import argparse
import importlib
import json
import lzma
import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

import flowml as fl

ROOT = Path(__file__).parents[1]
LENGTH = 64
"""Words in a row of the source: a window ends at its row."""
TITLE = re.compile(r"^=== .* ===$", re.MULTILINE)
WORD = re.compile("[a-z]+")


@dataclass(frozen=True)
class Text:
    """A text by numbers of words, the most frequent word first.

    Attributes
    ----------
    rows : ndarray of int32, shape (n, LENGTH)
        -1 behind the end of a book.
    vocabulary : list of str
    """

    rows: Any
    vocabulary: list[str]

    def words(self) -> int:
        """Return how many words there are in the rows."""
        return int(np.count_nonzero(self.rows >= 0))


@dataclass(frozen=True)
class Judged:
    """Pairs of words, and how similar people found them.

    Attributes
    ----------
    pairs : ndarray of int64, shape (n, 2)
    wanted : ndarray of float64, shape (n,)
    given : int
        Pairs in the file.
    """

    pairs: Any
    wanted: Any
    given: int

    def spearman(self, vectors: Any) -> float:
        """Return the rank correlation with the cosines of vectors, shape (words, dimensions)."""
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        one, two = unit[self.pairs[:, 0]], unit[self.pairs[:, 1]]
        return float(spearmanr((one * two).sum(1), self.wanted)[0])


def numbered(books: Iterator[list[str]], most: int) -> Text:
    """Return a text, with its ``most`` most frequent words."""
    numbers: dict[str, int] = defaultdict()
    numbers.default_factory = numbers.__len__  # type: ignore[attr-defined]
    parts = [np.fromiter((numbers[w] for w in book), np.int32, len(book)) for book in books]
    counts = np.bincount(np.concatenate(parts), minlength=len(numbers))
    order = np.argsort(-counts, kind="stable")[:most]
    ranks = np.full(len(counts), -1, np.int32)
    ranks[order] = np.arange(len(order))
    names = list(numbers)
    return Text(np.concatenate([cut(ranks[part]) for part in parts]), [names[i] for i in order])


def cut(words: Any) -> Any:
    """Return the words of a book that are in the vocabulary, in rows."""
    kept = words[words >= 0]
    rows = np.full((-(-len(kept) // LENGTH), LENGTH), -1, np.int32)
    rows.reshape(-1)[: len(kept)] = kept
    return rows


def books(folder: Path) -> Iterator[list[str]]:
    """Yield the words of each book."""
    with lzma.open(folder / "classic-books" / "books.txt.xz", "rt", encoding="utf-8") as file:
        text = file.read()
    for book in TITLE.split(text):
        yield WORD.findall(book.lower())


def judged(folder: Path, vocabulary: list[str]) -> Judged:
    """Return the pairs whose words are in the vocabulary."""
    index = {word: number for number, word in enumerate(vocabulary)}
    lines = (folder / "word-eval" / "wordsim353.tsv").read_text(encoding="utf-8").splitlines()
    fields = [line.lower().split("\t") for line in lines if line and not line.startswith("#")]
    known = [(index[a], index[b], float(s)) for a, b, s in fields if a in index and b in index]
    pairs = np.array([(a, b) for a, b, _ in known])
    return Judged(pairs, np.array([s for *_, s in known]), len(fields))


def made_up() -> tuple[Text, Judged]:
    """Return a text whose words keep to groups, and pairs of words with whether they are of one."""
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 10, 400)
    names = [[f"w{10 * g + i}" for i in rng.integers(0, 10, 60)] for g in groups]
    text = numbered(iter(names), 100)
    group = np.array([int(word[1:]) // 10 for word in text.vocabulary])
    pairs = rng.integers(0, len(group), (300, 2))
    return text, Judged(pairs, (group[pairs[:, 0]] == group[pairs[:, 1]]).astype(float), 300)


def trained(text: Text, asked: Judged, options: argparse.Namespace) -> dict[str, Any]:
    """Train, and return what came of it."""
    build = importlib.import_module("graphs.skip_gram").build
    graph: fl.Graph = build(
        text.rows,
        test=(asked.pairs, asked.wanted),
        lr=options.lr,
        batch_size=options.batch,
        dimensions=options.dimensions,
        window=options.window,
    )
    run = graph.run(epochs=options.epochs, replicas=options.replicas, progress=False)
    vectors = run.tables["inner"].at(np.arange(len(text.vocabulary)))
    return {
        "seconds": run.seconds,
        "words": text.words(),
        "words_per_second": text.words() * options.epochs / run.seconds,
        "loss": [float(run.history["loss"][0]), float(run.history["loss"][-20:].mean())],
        "spearman_by_epoch": [metric["spearman"] for metric in run.metrics],
        "spearman": asked.spearman(vectors),
        "pairs": len(asked.pairs),
        "pairs_given": asked.given,
        "largest_staleness": int(run.history["staleness"].max()),
    }


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small text, to see that it runs")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--words", type=int, default=30_000, help="size of the vocabulary")
    parser.add_argument("--dimensions", type=int, default=100)
    parser.add_argument("--window", type=int, default=5)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--batch", type=int, default=128, help=f"rows of {LENGTH} words a replica")
    parser.add_argument("--json", type=Path, help="write all numbers there")
    options = parser.parse_args(given)
    if options.quick:
        options.dimensions, options.batch, options.epochs = 16, 20, 3
    elif not os.environ.get("FLOWML_DATA"):
        parser.error("set FLOWML_DATA to the folder that holds classic-books, or give --quick")
    return options


def main(given: Sequence[str] | None = None) -> int:
    """Read, train and print."""
    options = arguments(given)
    sys.path.append(str(ROOT))
    if options.quick:
        text, asked = made_up()
    else:
        folder = Path(os.environ["FLOWML_DATA"])
        text = numbered(books(folder), options.words)
        asked = judged(folder, text.vocabulary)
    of = f"of a vocabulary of {len(text.vocabulary):,}"
    print(f"{text.words():,} words {of}, {len(text.rows):,} rows", flush=True)
    found = trained(text, asked, options)
    print(
        f"{options.epochs} epochs on {options.replicas} replicas in {found['seconds']:.1f} s: "
        f"{found['words_per_second']:,.0f} words/s; loss of a pair {found['loss'][0]:.3f} -> "
        f"{found['loss'][1]:.3f}; reads up to {found['largest_staleness']} steps late"
    )
    by_epoch = ", ".join(f"{value:.3f}" for value in found["spearman_by_epoch"])
    print(
        f"Spearman {found['spearman']:.3f} over {found['pairs']} of {found['pairs_given']} pairs "
        f"(after each epoch: {by_epoch})"
    )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
