"""One word for one thing: the words that the project gave up do not come back.

The list is that of the field's terms against the old names; DESIGN's words are the ones to use.
"""

import io
import re
import subprocess
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SELF = Path(__file__).name

# Parts of names in code: what the thing is, not what somebody did with it.
RETIRED_NAMES = {
    "exam": "test_set",
    "exams": "test_sets",
    "commonest": "majority",
    "picture": "image",
    "pictures": "images",
    "tell": "logger",
    "told": "what the text is",
    "said": "predicted, or what the text is",
    "asked": "requested, or what the value is",
    "found": "what the value is",
    "able": "available",
    "beside": "neighbours, or what the thing is",
    "judging": "evaluation",
    "judged": "metrics",
    "bench": "what the thing is",
}
# Whole names.
RETIRED_WHOLE = {"say", "across", "trained_on", "figures", "parts_of"}
RETIRED_WHOLE |= {"coverage_curve", "label_coverage"}  # coverage is of sets of classes
# In prose: comments, docstrings, messages, templates and pages.
RETIRED_PROSE = [
    r"exams?",
    r"pictures?",
    r"commonest",
    r"selection split",
    r"split selection",
    r"left out",
    r"not drawn",
    r"gone on from",
    r"goes on from",
    r"going on from",
    r"none of ours",
    r"what is taken for what",
    r"how sure it may be",
    r"official val rows",
    r"val images?",
    r"label coverage",
    r"against coverage",
]
PROSE = re.compile(rf"\b({'|'.join(RETIRED_PROSE)})\b", re.IGNORECASE)
# What a name of somebody else's is called, or what two words mean by chance.
ALLOWED_NAMES = {"FileNotFoundError", "PackageNotFoundError", "subfigures"}
ALLOWED_IN = {"search.py": {"tell"}}  # Optuna's `Study.tell`


def tracked(*patterns: str) -> list[Path]:
    """Files of the repository; of a source archive without git, all files."""
    listed = subprocess.run(
        ["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        return [path for pattern in patterns for path in ROOT.rglob(pattern) if path.is_file()]
    return [ROOT / name for name in listed.stdout.splitlines()]


def tokens(text: str) -> list[tokenize.TokenInfo]:
    return list(tokenize.generate_tokens(io.StringIO(text).readline))


def retired_names(text: str, allowed: set[str] = frozenset()) -> list[tuple[int, str]]:
    """Line and name of each identifier that has a retired word."""
    matches = []
    for token in tokens(text):
        if token.type != tokenize.NAME or token.string in ALLOWED_NAMES | allowed:
            continue
        snake = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", token.string).lower()
        if snake in RETIRED_WHOLE or set(snake.split("_")) & RETIRED_NAMES.keys():
            matches.append((token.start[0], token.string))
    return matches


def retired_prose(text: str, *, python: bool) -> list[tuple[int, str]]:
    """Line and words of each retired phrase in comments and strings, or in a whole text."""
    pieces = [(0, text)]
    if python:
        kinds = (tokenize.COMMENT, tokenize.STRING)
        pieces = [(t.start[0] - 1, t.string) for t in tokens(text) if t.type in kinds]
    return [
        (line + piece[: match.start()].count("\n") + 1, match.group())
        for line, piece in pieces
        for match in PROSE.finditer(piece)
    ]


def places(path: Path, matches: list[tuple[int, str]]) -> list[str]:
    return [f"{path.relative_to(ROOT)}:{line}: {word}" for line, word in matches]


CODE = [path for path in tracked("multitask/*.py", "tests/*.py", "tools/*.py") if path.name != SELF]
TEXTS = [
    path
    for path in tracked("*.j2", "*.md", "data_specs/*.toml", "Makefile")
    if path.name != "CHANGELOG.md"
]


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_code_uses_a_retired_word(path):
    text = path.read_text(encoding="utf-8")
    names = retired_names(text, ALLOWED_IN.get(path.name, set()))
    assert places(path, names + retired_prose(text, python=True)) == []


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_text_uses_a_retired_word(path):
    text = path.read_text(encoding="utf-8")
    assert places(path, retired_prose(text, python=False)) == []


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("exam_rows = 1", "exam_rows"),
        ("def f(said): pass", "said"),
        ("class SaidSo: pass", "SaidSo"),
        ("x = found", "found"),
        ("tell('x')", "tell"),
        ("import figures", "figures"),
    ],
)
def test_the_rule_sees_a_retired_name(text, word):
    assert retired_names(text) == [(1, word)]


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("x = 1  # of the exam", 1, "exam"),
        ('"""A line.\n\nSome pictures.\n"""', 3, "pictures"),
        ('f("12 images left out")', 1, "left out"),
    ],
)
def test_the_rule_sees_a_retired_phrase(text, line, word):
    assert retired_prose(text, python=True) == [(line, word)]


def test_names_with_similar_letters_are_fine():
    text = "examples = probability = stable = foundation = 1  # examples in the picturesque\n"
    assert retired_names(text) == []
    assert retired_prose(text, python=True) == []
