"""The documentation builds strictly, and names only links, flags and make targets that exist."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags

from multitask.__main__ import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "data_specs/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
OF_EVERY_COMMAND = {"help", "quiet", "verbose"}
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def links(text: str) -> list[str]:
    """The targets of links and images that are no URLs."""
    return re.findall(r"\]\((?!https?:)([^)\s]+)\)", FENCE.sub("", text))


def anchors(text: str) -> set[str]:
    """The anchors of the headings, as GitHub and the site name them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(text: str, page: Path) -> list[str]:
    """The links that lead to no file, or to no heading of it."""
    broken = []
    for link in links(text):
        name, _, anchor = link.partition("#")
        target = page.parent / name
        if name and not target.is_file():
            broken.append(link)
        elif anchor:
            there = target.read_text(encoding="utf-8") if name else text
            broken += [link] * (anchor not in anchors(there))
    return broken


def command_lines(text: str) -> list[str]:
    """The lines of the code blocks and of inline code; `\\` joins lines."""
    blocks = "\n".join(FENCE.findall(text)).replace("\\\n", " ").splitlines()
    return [*blocks, *re.findall(r"`([^`\n]+)`", FENCE.sub("", text))]


def flags_of(command: str) -> set[str]:
    if command == "COMMAND":  # any of them
        return OF_EVERY_COMMAND
    if command not in COMMANDS:
        return set()
    values = flags.FlagValues()
    importlib.import_module(f"multitask.commands.{command}").define_flags(values)
    names = OF_EVERY_COMMAND | set(values)
    return names | {f"no{name}" for name in values if values[name].boolean}


def unknown_flags(text: str) -> list[str]:
    """`COMMAND --FLAG` for each flag that its command does not have."""
    unknown = []
    for line in command_lines(text):
        for command, rest in re.findall(r"\bmultitask (\w+)([^|#]*)", line):
            named = re.findall(r"(?<!\S)--(\w+)", rest)
            known = flags_of(command)
            unknown += [f"{command} --{name}" for name in named if name not in known]
    return unknown


def unknown_targets(text: str, makefile: str) -> list[str]:
    targets = set(re.findall(r"^([a-z][\w-]*):", makefile, re.MULTILINE))
    lines = command_lines(text)
    named = {name for line in lines for name in re.findall(r"(?:^|\W)make ([a-z][\w-]*)", line)}
    return sorted(named - targets)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_flags_and_targets_exist(page):
    text = page.read_text(encoding="utf-8")
    assert broken_links(text, page) == []
    assert unknown_flags(text) == []
    assert unknown_targets(text, (ROOT / "Makefile").read_text(encoding="utf-8")) == []


def test_a_flag_that_stands_alone_is_one_of_some_command():
    known = set().union(*map(flags_of, COMMANDS))
    for page in PAGES:
        text = FENCE.sub("", page.read_text(encoding="utf-8"))
        assert set(re.findall(r"`--(\w+)", text)) <= known, page


def test_flags_need_no_tensorflow():
    code = (
        f"import importlib, sys\nfor name in {list(COMMANDS)}:\n"
        "    importlib.import_module(f'multitask.commands.{name}')\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_site_builds_strictly(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", f"--site-dir={tmp_path}"]
    built = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert 'href="choices.html"' in page  # data_specs/README.md
    assert not re.findall(r'(?:src|<link[^>]* href)="(?:https?:)?//', page)  # no network


# === The checks can fail ===


@pytest.mark.parametrize(
    "link", ["missing.md", "data.md#missing", "#missing", "missing.png", "../docs"]
)
def test_a_broken_link_is_seen(link):
    assert broken_links(f"# One\n[x]({link})", ROOT / "docs" / "index.md") == [link]


@pytest.mark.parametrize("link", ["data.md#layouts", "#two-words", "report.png", "../README.md"])
def test_a_right_link_is_not(link):
    assert broken_links(f"# Two `words`\n[x]({link})", ROOT / "docs" / "index.md") == []


@pytest.mark.parametrize(
    ("line", "unknown"),
    [
        ("```\nmultitask train --spec=x --nosimilar --epoch=3\n```", ["train --epoch"]),
        ("```\nmultitask train --spec=x \\\n  --sped=x\n```", ["train --sped"]),
        ("`multitask predict --tta=flip --top_k=2`", ["predict --top_k"]),
        ("`multitask predicts --out=x`", ["predicts --out"]),
        ("`multitask serve --model=x | cat --number`", []),
    ],
)
def test_an_unknown_flag_is_seen(line, unknown):
    assert unknown_flags(line) == unknown


def test_an_unknown_target_is_seen():
    assert unknown_targets("`make demo` and `make tea`", "demo: x\n\techo\n") == ["tea"]
