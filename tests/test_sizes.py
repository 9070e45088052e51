"""Files and functions of the package stay short enough to be read at once."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "multitask"
MODULES = sorted(PACKAGE.rglob("*.py"))
MOST_FILE, MOST_FUNCTION = 500, 60  # lines


def functions(text: str) -> list[tuple[str, int]]:
    """Name and lines of each function, signature and docstring included."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, kinds)]
    return [(node.name, node.end_lineno - node.lineno + 1) for node in nodes]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_FILE
    assert [(name, lines) for name, lines in functions(text) if lines > MOST_FUNCTION] == []


def test_a_long_function_is_seen():
    text = "def f():\n" + "    x = 1\n" * 60
    assert functions(text) == [("f", 61)]
