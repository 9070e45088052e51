"""Imports point one way, and no code knows a task by name; read from the syntax trees."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "multitask"
MODULES = sorted(PACKAGE.rglob("*.py"))

# The rooms from the bottom up. One may import those of its own floor and below; the rooms
# of arrays alone, and run.py just above the spec, do not need each other.
FLOORS = (
    ("multitask", "reading", "console", "prefetch"),
    ("errors", "backend"),
    ("spec_training",),
    ("spec_task",),
    ("spec_fields",),
    ("spec_description",),
    ("spec",),
    ("disk",),
    ("files",),
    ("startup",),
    ("run",),
    ("results",),
    ("bootstrap",),
    ("metrics", "retrieval"),
    ("open_set", "conformal"),
    ("calibration", "feature_distance"),
    ("pages",),
    ("data",),
    ("runtimes",),
    ("model",),
    ("learning",),
    ("trained",),
    ("evaluation",),
    ("serving",),
    ("annexes",),
    ("library",),
    ("commands",),
    ("__main__",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def room(module: str) -> str:
    """`multitask.data.table` -> `data`; `multitask` itself (its version) -> `multitask`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Full names of all that a file imports, wherever in it."""
    result = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            result |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = name_of(path).split(".")
            if path.name != "__init__.py":
                package = package[:-1]
            base = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = ROOT.joinpath(*base.split("."), alias.name)
                is_module = inner.is_dir() or inner.with_suffix(".py").is_file()
                result.add(f"{base}.{alias.name}" if is_module else base)
    return result


def wrong_imports(path: Path) -> list[str]:
    own = room(name_of(path))
    ours = {name for name in imports(path) if name.split(".")[0] == "multitask"}
    return sorted(
        name
        for name in ours
        if room(name) != own
        # Two rooms of one floor do not know each other.
        and (FLOOR[room(name)] >= FLOOR[own] and room(name) != "multitask")
    )


def test_every_room_has_its_floor():
    assert {room(name_of(path)) for path in MODULES} == FLOOR.keys()


# Its imports are for type checkers; tests/library/test_public.py reads what it imports when run.
PUBLIC = PACKAGE / "__init__.py"


@pytest.mark.parametrize("path", [path for path in MODULES if path != PUBLIC], ids=name_of)
def test_imports_point_down(path):
    assert wrong_imports(path) == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("def f():\n    from multitask.serving import export", ["multitask.serving.export"]),
        ("import multitask.learning.losses as losses", ["multitask.learning.losses"]),
        ("from multitask import commands", ["multitask.commands"]),
        ("from ..evaluation.report import evaluate", ["multitask.evaluation.report"]),
        ("from . import heads\nfrom multitask.data import table\nimport multitask.spec", []),
        ("from multitask import __version__", []),
    ],
)
def test_the_rule_sees_every_kind_of_import(monkeypatch, text, wrong):
    """As if the text stood in model/."""
    path = PACKAGE / "model" / "not_written.py"
    monkeypatch.setattr(Path, "read_text", lambda self: text)
    assert wrong_imports(path) == wrong


# === No circles ===


def import_graph() -> dict[str, set[str]]:
    """Module -> all modules of ours that it imports: at the top, in a function, or for types.

    The package itself counts as a module without imports: what it imports is for type checkers.
    """
    names = {name_of(path) for path in MODULES}
    return {
        name_of(path): set() if path == PUBLIC else imports(path) & names - {name_of(path)}
        for path in MODULES
    }


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of one circle, the first of them twice; empty if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_no_modules_import_each_other_in_a_circle():
    assert circle(import_graph()) == []


def test_the_rule_sees_a_circle():
    graph = import_graph()
    assert {"multitask.data.table", "multitask.spec"} <= graph["multitask.data.merging"]
    graph["multitask.spec"].add("multitask.data.merging")
    assert circle(graph)[0] == circle(graph)[-1]


# === The core knows no annex ===

ABOVE = ("annexes", "library", "commands", "__main__")
CORE = [path for path in MODULES if room(name_of(path)) not in ABOVE]


@pytest.mark.parametrize("path", CORE, ids=name_of)
def test_the_core_names_no_annex(path):
    """Neither by an import, lazy or not, nor in a string, a comment or a docstring."""
    assert "annexes" not in path.read_text()


def test_the_seams_have_no_switch_for_an_annex():
    """The rooms below the annexes read no option of a spec that only an annex implements."""
    options = {"mix", "sampler", "smote", "contrastive"}
    for path in CORE:
        if room(name_of(path)) in ("data", "model", "learning", "evaluation", "serving"):
            read = {
                node.attr
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Attribute)
            }
            assert not read & options, path


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_commands_know_absl_flags(path):
    if room(name_of(path)) in ("commands", "__main__"):
        return
    assert not [name for name in imports(path) if name.split(".")[0] == "absl"]


@pytest.mark.parametrize(
    "name",
    [
        *("metrics", "retrieval", "calibration", "conformal", "bootstrap"),
        "feature_distance",
        *("spec", "disk", "files", "run", "results"),
    ],
)
def test_arrays_need_no_tensorflow(name):
    """Neither directly nor through a module of ours."""
    seen, todo = set(), [f"multitask.{name}"]
    while todo:
        module = todo.pop()
        path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
        if module in seen or not path.is_file():
            continue
        seen.add(module)
        result = imports(path)
        assert not {x for x in result if x.split(".")[0] in ("tensorflow", "keras")}, module
        todo += [x for x in result if x.startswith("multitask")]
    assert f"multitask.{name}" in seen


# === No module knows the word "artist" ===

TASKS = {"artist", "style", "genre"}
# Matplotlib's: of boxes, of sheets and of fonts.
OTHER_MEANINGS = {"pages": {"style"}}


def task_words(tree: ast.AST, words_sought=TASKS) -> list[tuple[int, str]]:
    """Where code (no docstring, no comment) holds a task's name.

    An identifier that has it as one of its words; a string that is it, or that spells a file or
    field of it (`artist_train.csv`). Prose for people, which has spaces, may mention them.
    """
    result = []

    def look(line: int, text: str) -> None:
        words = set("".join(c if c.isalpha() else " " for c in text.lower()).split())
        if words & words_sought:
            result.append((line, text))

    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if " " not in node.value.strip():
                look(node.lineno, node.value)
        elif isinstance(node, ast.Name):
            look(node.lineno, node.id)
        elif isinstance(node, ast.Attribute):
            look(node.lineno, node.attr)
        elif isinstance(node, ast.arg):
            look(node.lineno, node.arg)
        elif isinstance(node, ast.keyword) and node.arg:
            look(node.value.lineno, node.arg)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            look(node.lineno, node.name)
    return result


# The demo's images are painted for the tasks of WikiArt.
PAINTING = PACKAGE / "annexes" / "painting"


@pytest.mark.parametrize(
    "path", [path for path in MODULES if PAINTING not in path.parents], ids=name_of
)
def test_no_module_knows_a_task_by_name(path):
    sought = TASKS - OTHER_MEANINGS.get(room(name_of(path)), set())
    assert task_words(ast.parse(path.read_text()), sought) == []


@pytest.mark.parametrize(
    "text",
    [
        'if task == "artist": pass',
        "artist_head = 1",
        "model.genre_logits",
        "def style_loss(): pass",
        "f(artist=1)",
        'path = "genre_train.csv"',
        "def f(style): pass",
    ],
)
def test_the_rule_sees_a_task_name(text):
    assert len(task_words(ast.parse(text))) == 1
