"""Names say a concept, files and functions stay short, and public things are documented."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted([*(ROOT / "flowml").rglob("*.py"), *(ROOT / "graphs").rglob("*.py")])
OURS = [path for path in FILES if path.is_relative_to(ROOT / "flowml")]

# Words that name no concept; each part of a name is compared whole, so "processes" is allowed.
BANNED = frozenset(
    "manager helper helpers util utils misc common core base engine service wrapper info obj "
    "process do my kwargs".split()
)
BANNED_ALONE = frozenset({"data"})
MODULE_LINES = 500
FUNCTION_LINES = 80

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def definitions(path: Path) -> Iterator[Definition]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, Definition):
            yield node


def names(path: Path) -> Iterator[tuple[int, str]]:
    """Yield each function, class and parameter of a file, and the file itself, with the line."""
    yield 1, path.parent.name if path.stem == "__init__" else path.stem
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, Definition):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg


def parts(name: str) -> list[str]:
    """Return the words of a snake_case or CamelCase name.

    >>> parts("_read_only"), parts("DataError"), parts("IMRBase2")
    (['read', 'only'], ['data', 'error'], ['imr', 'base2'])
    """
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    return [part for part in snake.lower().split("_") if part]


def allowed(name: str, path: Path) -> bool:
    words = parts(name)
    package = path == ROOT / "flowml" / "data" / "__init__.py" and name == "data"
    return package or not (BANNED & set(words) or (len(words) == 1 and words[0] in BANNED_ALONE))


@pytest.mark.parametrize("path", FILES, ids=shown)
def test_a_name_says_a_concept(path):
    dunder = re.compile(r"__\w+__$")
    wrong = [
        f"{shown(path)}:{line} {name}"
        for line, name in names(path)
        if not dunder.match(name) and not allowed(name, path)
    ]
    assert wrong == []


@pytest.mark.parametrize("path", FILES, ids=shown)
def test_files_and_functions_stay_short(path):
    assert len(path.read_text().splitlines()) <= MODULE_LINES
    long = [
        f"{shown(path)}:{node.lineno} {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for node in definitions(path)
        if not isinstance(node, ast.ClassDef) and node.end_lineno - node.lineno + 1 > FUNCTION_LINES
    ]
    assert long == []


@pytest.mark.parametrize("path", OURS, ids=shown)
def test_public_things_have_a_docstring(path):
    tree = ast.parse(path.read_text())
    public = [(1, path.stem, tree)]
    pending: list[ast.AST] = [tree]
    while pending:  # modules and classes only: what is inside a function is not public
        for node in pending.pop().body:
            if isinstance(node, Definition) and not node.name.startswith("_"):
                public.append((node.lineno, node.name, node))
                pending += [node] if isinstance(node, ast.ClassDef) else []
    missing = [
        f"{shown(path)}:{line} {name}" for line, name, node in public if not ast.get_docstring(node)
    ]
    assert missing == []


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("data", False),
        ("data_source", True),
        ("GraphManager", False),
        ("processes", True),
        ("do_step", False),
        ("_my_rule", False),
        ("DataError", True),
        ("utils", False),
    ],
)
def test_the_check_itself(name, good):
    assert allowed(name, ROOT / "flowml" / "x.py") is good
