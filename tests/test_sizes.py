"""Files and functions stay short enough to be read at once."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "multitask"
MODULES = sorted(PACKAGE.rglob("*.py"))
OTHERS = sorted(path for folder in ("tests", "tools") for path in (ROOT / folder).rglob("*.py"))
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


def test_files_of_tests_and_tools_are_short():
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in OTHERS}
    assert {str(path): count for path, count in lines.items() if count > MOST_FILE} == {}
    assert len(lines) > 100  # they were found


def test_a_long_function_is_seen():
    text = "def f():\n" + "    x = 1\n" * 60
    assert functions(text) == [("f", 61)]
