"""The public names: what they are, that they are cheap to import, and that their examples run."""

import doctest
import importlib
import subprocess
import sys

import pytest

import multitask

pytestmark = pytest.mark.usefixtures("untimed")


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def test_the_names():
    assert 10 <= len(multitask.__all__) <= 16
    assert sorted(multitask.__all__) == multitask.__all__
    assert set(multitask.__all__) < set(dir(multitask))
    for name in multitask.__all__:
        assert getattr(multitask, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'trane'"):
        _ = multitask.trane


def test_the_import_imports_nothing_heavy():
    code = "import sys, multitask; print(*(m for m in sys.modules if not m.startswith('_')))"
    heavy = {"numpy", "pandas", "pydantic", "matplotlib", "keras", "tensorflow", "absl", "tqdm"}
    assert not heavy & set(python(code).split())


@pytest.mark.parametrize("name", multitask.__all__)
@pytest.mark.usefixtures("undrawn")
def test_every_name_has_an_example_that_runs(name, museum):
    public = getattr(multitask, name)
    module = importlib.import_module(public.__module__)
    finder = doctest.DocTestFinder(exclude_empty=False)
    (test,) = (one for one in finder.find(public, name, module=module) if one.name == name)
    assert test.examples, f"{name} has no example"
    lines = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=lines.append)
    assert not lines, "".join(lines)


# As mypy reads an installed package: its signatures, not what is in its functions. The types of
# other packages are slow to read.
MYPY = """
[mypy]
ignore_missing_imports = True
[mypy-multitask,multitask.*]
ignore_errors = True
[mypy-multitask.annexes.*,multitask.data.*,multitask.evaluation.*,multitask.learning.*]
follow_imports = skip
[mypy-multitask.model.*,multitask.pages.*,multitask.runtimes.*,multitask.serving.*]
follow_imports = skip
[mypy-numpy.*,pandas.*,pydantic.*,tensorflow.*,keras.*,sklearn.*,scipy.*,matplotlib.*,PIL.*]
follow_imports = skip
"""


def test_annotations_are_for_users_of_mypy(tmp_path):
    """A user's module is checked against the package's own types."""
    mypy_api = pytest.importorskip("mypy.api")
    file = tmp_path / "use.py"
    file.write_text(
        "import multitask as mt\n"
        "run: mt.TrainingRun = mt.open_run('runs/first')\n"
        "reveal_type(run.evaluate())\n"
        "reveal_type(mt.load_model('m').predict('a.jpg'))\n"
        "mt.open_run(7)\n"
    )
    (tmp_path / "mypy.ini").write_text(MYPY)
    flags = [f"--config-file={tmp_path / 'mypy.ini'}", f"--cache-dir={tmp_path / 'cache'}"]
    out, _, status = mypy_api.run([str(file), *flags])
    assert status == 1
    assert "multitask.library.evaluations.RunEvaluation" in out
    assert "multitask.library.models.PredictionTable" in out
    assert 'use.py:5: error: Argument 1 to "open_run" has incompatible type "int"' in out
