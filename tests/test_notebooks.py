"""The notebooks of examples/: committed without outputs, and they run in a small setting."""

import ast
import importlib.util
import json
import os
import re
import sys
import tomllib
from pathlib import Path

import pandas as pd
import pytest

import multitask

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
NAMES = ("own_collection", "quickstart")
# Public names that no notebook uses.
UNUSED = {
    "ImageModel": "the type of what load_model returns",
    "PredictionTable": "the type of what predict returns",
    "RunError": "these runs do not fail",
    "RunEvaluation": "the type of what evaluate returns",
    "TrainingRun": "the type of what train returns",
    "register_loss": "works as register_head",
    "register_schedule": "works as register_head",
    "register_trunk": "works as register_head",
}


def code_of(notebook):
    """The sources of the code cells."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def used_names(source):
    """The names of the library that a cell uses, as `mt.NAME`."""
    return {
        node.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "mt"
    }


def load_tool():
    spec = importlib.util.spec_from_file_location("tool", ROOT / "tools" / "write_notebooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_notebooks_are_those():
    assert tuple(path.stem for path in NOTEBOOKS) == NAMES
    assert len({code_of(path)[0] for path in NOTEBOOKS}) == 1  # the installation


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_up_to_date(notebook):
    text = notebook.with_suffix(".py").read_text(encoding="utf-8")
    assert notebook.read_text(encoding="utf-8") == load_tool().notebook(text)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_without_outputs(notebook):
    content = json.loads(notebook.read_text(encoding="utf-8"))
    assert set(content["metadata"]) == {"kernelspec", "language_info"}
    for cell in content["cells"]:
        assert cell["metadata"] == {}
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_valid(notebook):
    nbformat = pytest.importorskip("nbformat")
    nbformat.validate(nbformat.read(notebook, as_version=4))


def test_cells_use_public_names_only():
    cells = [source for path in NOTEBOOKS for source in code_of(path)]
    used = set().union(*map(used_names, cells))
    assert used | UNUSED.keys() == set(multitask.__all__)
    assert used & UNUSED.keys() == set()
    imported = set().union(*(re.findall(r"^(?:import|from) multitask.*", s, re.M) for s in cells))
    assert imported == {"import multitask as mt"}


def test_the_tool_splits_cells():
    text = "# %% [markdown]\n# # Title\n#\n# text\n\n# %%\nx = 1  # %% no cell\n\n\n# %%\nx\n"
    cells = json.loads(load_tool().notebook(text))["cells"]
    assert [(cell["cell_type"], "".join(cell["source"])) for cell in cells] == [
        ("markdown", "# Title\n\ntext"),
        ("code", "x = 1  # %% no cell"),
        ("code", "x"),
    ]


# === Runs ===


class Executed:
    """An executed notebook."""

    def __init__(self, cells):
        self.cells = [cell for cell in cells if cell.cell_type == "code"]

    def cell(self, start):
        """The code cell that has a line that starts so."""
        (cell,) = [c for c in self.cells if re.search(f"^{re.escape(start)}", c.source, re.M)]
        return cell

    def text(self, start, stream):
        return stream_of(self.cell(start), stream)

    def data(self, start, kind):
        """The outputs of a cell that are values of a type, such as text/html."""
        outputs = [output.get("data", {}) for output in self.cell(start).outputs]
        return [data[kind] for data in outputs if kind in data]


def stream_of(cell, stream):
    streams = [output for output in cell.outputs if output.output_type == "stream"]
    return "".join(output.text for output in streams if output.name == stream)


@pytest.fixture
def execute(tmp_path):
    """A function that executes a notebook in an empty folder."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    class ThisPython(AsyncKernelManager):
        """Starts this Python, whatever kernels are installed."""

        @property
        def kernel_spec(self):
            module = ["-m", "ipykernel_launcher", "-f", "{connection_file}"]
            return KernelSpec(argv=[sys.executable, *module], language="python")

    def run(name):
        notebook = nbformat.read(ROOT / "examples" / f"{name}.ipynb", as_version=4)
        client = nbclient.NotebookClient(
            notebook,
            timeout=600,
            kernel_manager_class=ThisPython,
            resources={"metadata": {"path": str(tmp_path)}},
        )
        env = os.environ | {"MULTITASK_NOTEBOOK_SMALL": "1"}
        env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [env.get("PYTHONPATH")])])
        # Where it is set, a kernel does not show what libraries in C++ print.
        env.pop("PYTEST_CURRENT_TEST", None)
        client.execute(env=env)
        return Executed(notebook.cells), tmp_path / "runs" / f"{name}_small"

    return run


def check_output(done):
    """Epochs and bars appear, and nothing on stderr."""
    training = done.text("run = mt.train(", "stdout")
    epochs = r"[\r\n]finetune 1/1: +0%\|.*\r +\rfinetune 1/1 +loss "
    assert re.search(epochs, training, re.DOTALL)
    for cell in done.cells:
        assert all(output.output_type != "error" for output in cell.outputs)
        assert stream_of(cell, "stderr").strip() == ""
        assert "tensorflow:" not in stream_of(cell, "stdout")


def check_shown(done, tasks):
    """A run, an evaluation and predictions show themselves as HTML."""
    (run,) = done.data("run = mt.train(", "text/html")
    assert "best epoch" in run
    (evaluation,) = done.data("evaluation = run.evaluate()", "text/html")
    (predictions,) = done.data("predictions = model.predict(", "text/html")
    for task in tasks:
        assert f"training history of {task}" in run
        assert f"<th>{task}</th>" in evaluation
        assert f"confusion matrix of {task}" in evaluation
        assert f"<th>{task}</th>" in predictions
    assert "<img src='data:image/" in predictions
    return predictions


@pytest.mark.slow
def test_the_quick_start_runs(execute):
    done, folder = execute("quickstart")
    check_output(done)
    tasks = ("artist", "style", "genre")
    assert check_shown(done, tasks).count("<img") == 4

    assert "field: image_size\nimage_size: 10: " in done.text("spec = ", "stdout")
    for start in ("first = ", 'evaluation.plot("f1', 'evaluation.plot("outliers', "similar = "):
        (png,) = done.data(start, "image/png")
        assert len(png) > 10_000, start
    (wrong,) = done.data("labelled = ", "text/html")
    assert "<td></td>" not in wrong  # only images with a label
    (similar,) = done.data("similar = ", "text/html")
    assert "<th>distance</th>" in similar
    table = pd.read_csv(folder / "predictions.csv")
    assert len(table) == 4
    assert table["error"].isna().all()
    assert {f"{task}/predicted" for task in tasks} < set(table)

    silent = done.cell("logging.getLogger(")  # it evaluates again
    assert [output.output_type for output in silent.outputs] == ["execute_result"]
    assert all(f"<th>{task}</th>" in silent.outputs[0].data["text/html"] for task in tasks)


@pytest.mark.slow
def test_the_notebook_of_an_own_collection_runs(execute):
    done, folder = execute("own_collection")
    check_output(done)
    assert re.search(r"[\r\n]heads 1/1 +loss ", done.text("run = mt.train(", "stdout"))
    predictions = check_shown(done, ("period", "medium"))
    assert predictions.count("<img") == 6
    assert predictions.count("uncertain: ") == 12  # the small model learns nothing

    (guesses,) = done.data("draft = mt.draft_spec(FOLDER", "text/html")
    roles = dict(re.findall(r"<tr><td[^>]*>(\w+)</td><td[^>]*>(\w+)</td>", guesses))
    assert roles == {"image": "image", "object": "group", "period": "task", "medium": "task",
                     "room": "task"}  # fmt: skip
    changed = done.text("TASKS = ", "stdout")
    spec = tomllib.loads((folder / "my_collection.toml").read_text(encoding="utf-8"))
    assert [task["column"] for task in spec["task"]] == ["period", "medium"]
    assert spec["table"]["group"] == "object"
    assert 'room": not named as a task' in changed
    kept = pd.read_csv(folder / "run" / "table.csv")
    sides = kept.groupby(kept["path"].str.split("_").str[0])["split"].nunique()
    assert (len(kept), len(sides), sides.max()) == (36, 18, 1)
    config = json.loads((folder / "run" / "config.json").read_text())
    assert '"max_and_mean"' in json.dumps(config)
    filled = pd.read_csv(folder / "filled.csv")
    assert filled["period"].isna().all()
    assert filled["period/1_probability"].between(0, 1).all()
    assert len(filled) == 6
