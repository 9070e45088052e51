"""A three-task data set of a few small images in ArtGAN's layout, and the spec that reads it."""

import contextlib
import dataclasses
import gc
import importlib
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from specs import lists_of, spec_of

# Folders whose files share fixtures that take seconds: each is tested in one process.
TOGETHER = {
    "learning": "learning",
    "serving": "serving",
    "annexes/serve": "serving",
    "model": "model",
    "library": "library",
}
LONG = ("test_end_to_end.py", "test_exact_resume.py", "test_hostile_specs.py", "test_report.py")


def pytest_configure():
    # Background jobs of a shell ignore Ctrl-C, and so would tests of Ctrl-C.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def group_of(file: str) -> str:
    """Which tests share a process: of a file, its name below this folder."""
    return TOGETHER.get(file.rpartition("/")[0], file)


def pytest_collection_modifyitems(items):
    """The longest start first: none is alone at the end."""
    groups = [*dict.fromkeys(TOGETHER.values())]
    tests = Path(__file__).parent

    def turn(item):
        group = group_of(item.path.relative_to(tests).as_posix())
        if group in groups:
            return groups.index(group)
        return len(groups) + (item.path.name not in LONG)

    items.sort(key=turn)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    # Not `--dist=loadgroup`: pytest-xdist 3.8 does not see the groups of pytest 9.2.
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return group_of(nodeid.partition("::")[0].removeprefix("tests/"))

    return Together(config, log) if config.getvalue("dist") == "loadscope" else None


# Objects of imported modules stay to the end: no garbage collection looks at them, which saves
# seconds.
gc.disable()


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def few_objects():
    """Objects that outlive the tests of a file are not looked at again by garbage collection, which
    would take seconds each time; by the end there are millions."""
    yield
    gc.collect()
    gc.freeze()


TINY_CLASSES = {
    "artist": ("Ann_Alder", "Bo_Birch"),
    "style": ("Dots", "Lines", "Waves"),
    "genre": ("harbour", "portrait"),
}


def _tiny_rows():
    """12 images of train and 4 of test. Of train have a label: style all, genre 9, artist 6."""
    rows = {f"{task}_{split}": [] for task in TINY_CLASSES for split in ("train", "val")}
    labelled = {"train": {"artist": 6, "style": 12, "genre": 9}}
    labelled["val"] = {"artist": 2, "style": 4, "genre": 3}  # as ArtGAN names its test sets
    for split, counts in labelled.items():
        for i in range(counts["style"]):
            path = f"{TINY_CLASSES['style'][i % 3]}/someone_{split}-{i:02}.jpg"
            for task, count in counts.items():
                if i < count:
                    rows[f"{task}_{split}"].append((path, i % len(TINY_CLASSES[task])))
    return rows


@pytest.fixture
def half_labelled():
    """A function: images -> rows for `tiny_data`. Each image has a style, two of three a genre,
    and every `artist_every`-th an artist."""

    def rows(count, *, artist_every=3):
        paths = [f"Dots/{i:02}.jpg" for i in range(count)]
        return {
            "style_train": [(path, i % 3) for i, path in enumerate(paths)],
            "genre_train": [(path, i % 2) for i, path in enumerate(paths) if i % 3],
            "artist_train": [
                (path, i % 2) for i, path in enumerate(paths) if i % artist_every == 0
            ],
        }

    return rows


@pytest.fixture(scope="session")
def write_image():
    """Write a smooth image without symmetry; its seed makes it different from the others.

    Args:
        cells: colours across and down; few make it smoother than any painting.
    """

    def write(path, *, width=40, height=30, seed=0, cells=(4, 3)):
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (*cells[::-1], 3)
        coarse = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        image.save(path, **({"quality": 95} if path.suffix == ".jpg" else {}))
        return path

    return write


@pytest.fixture(scope="session")
def tiny_data_in(write_image):
    """A function that writes the data set into a folder, which it returns.

    Args:
        rows: `{"style_train": [(path, label), …] or the file's whole text or bytes}`; replaces
            that file of the default data set.
        classes: `{"style": (name, …)}`; replaces that class file.
        only: leave every file out of the default data set but those in `rows`: the others get
            one row of their own, `other/{task}_{split}.jpg`.
        images: write an image for every row (of the files that are given as rows).
    """

    def write(root, *, rows=None, classes=None, only=False, images=True):
        csvs = root / "wikiart_csv"
        csvs.mkdir(parents=True, exist_ok=True)
        for task, names in {**TINY_CLASSES, **(classes or {})}.items():
            lines = [f"{index} {name}\n" for index, name in enumerate(names)]
            (csvs / f"{task}_class.txt").write_text("".join(lines), encoding="utf-8")
        default = _tiny_rows()
        if only:
            default = {name: [(f"other/{name}.jpg", 0)] for name in default}
        names = set()
        for name, content in {**default, **(rows or {})}.items():
            file = csvs / f"{name}.csv"
            if isinstance(content, bytes):
                file.write_bytes(content)
            elif isinstance(content, str):
                file.write_text(content, encoding="utf-8")
            else:
                text = "".join(f'"{path}",{label}\n' for path, label in content)
                file.write_text(text, encoding="utf-8")
                names.update(path for path, _ in content)
        if images:
            for seed, name in enumerate(sorted(names)):
                write_image(root / "wikiart" / name, seed=seed)
        return root

    return write


@pytest.fixture
def tiny_data(tmp_path, tiny_data_in):
    """`tiny_data_in` the test's own folder."""

    def write(*, folder="data", **options):
        return tiny_data_in(tmp_path / folder, **options)

    return write


@pytest.fixture(scope="session")
def tiny_spec():
    """A function that makes the spec of `tiny_data`.

    Args:
        tasks: which, in this order.
        of_tasks: fields of every task.
        fields: top-level fields, e.g. `image_size=48`.
    """

    def make(*, tasks=tuple(TINY_CLASSES), of_tasks=None, **fields):
        lists = lists_of(tasks, "wikiart_csv")
        settings = {
            "name": "tiny",
            "image_size": 32,
            "batch_size": 5,
            "validation": 0.0,
            "phases": {"heads": {"epochs": 1}, "finetune": {"epochs": 1}},
        }
        loss = {"kind": "focal", "gamma": 2.0, "alpha": 1.0}
        of_tasks = {"loss": loss} | (of_tasks or {})
        return spec_of(*lists, of_tasks=of_tasks, file="tiny.toml", **settings | fields)

    return make


@pytest.fixture
def tiny_trunk(monkeypatch):
    """The name of a trunk of two blocks, laid out as EfficientNet's are, that builds in no time."""
    from multitask.model.trunks import TRUNKS

    monkeypatch.setitem(TRUNKS, "tiny", importlib.import_module("tiny_trunk").two_blocks)
    return "tiny"


@pytest.fixture(scope="module")
def tiny_trunk_module():
    """`tiny_trunk` for fixtures that the tests of a file share."""
    from multitask.model.trunks import TRUNKS

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TRUNKS, "tiny", importlib.import_module("tiny_trunk").two_blocks)
        yield "tiny"


@pytest.fixture(scope="session")
def uncompiled():
    """A function: -> a context in which `train` and `tune` take their steps uncompiled, for tests
    that only want a trained run: to compile a phase takes as long as dozens of such steps."""
    return _uncompiled


@contextlib.contextmanager
def _uncompiled():
    from multitask.annexes.tune import trial
    from multitask.learning import training

    original = training.prepare_phase

    def prepare_phase(*args, **options):
        prepared = original(*args, **options)
        prepared.model.run_eagerly = True
        return prepared

    with pytest.MonkeyPatch.context() as patch:
        for module in (training, trial):
            patch.setattr(module, "prepare_phase", prepare_phase)
        yield


@pytest.fixture
def undrawn():
    """Plots are composed, but a blank image is written: tests/pages and tests/evaluation draw
    them, which is half the time of an evaluation."""
    with _without_drawing():
        yield


@pytest.fixture(scope="module")
def undrawn_module():
    """`undrawn` for fixtures that the tests of a file share."""
    with _without_drawing():
        yield


@pytest.fixture(scope="session")
def without_drawing():
    """A function: formats -> a context that is `undrawn`; the page of a report has the SVG."""
    return _without_drawing


@pytest.fixture
def unplotted(monkeypatch):
    """An evaluation leaves out what takes most of its time, the plots of its tasks and where the
    model looked: for tests that read its numbers, its lines or the rest of its page."""
    from multitask.evaluation import result_files

    monkeypatch.setattr(result_files, "attention_examples", lambda *what: [])
    with _without_plots():
        yield


@contextlib.contextmanager
def _without_drawing(formats=("png", "svg")):
    from multitask.pages.canvas import Plot

    original = Plot.savefig

    def savefig(self, target, *, format="png", **options):
        if format not in formats:
            original(self, target, format=format, **options)
        elif format == "svg":
            target.write('<svg viewBox="0 0 1 1"></svg>')
        else:
            Image.new("RGB", (8, 8)).save(target, format)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Plot, "savefig", savefig)
        yield


@pytest.fixture(scope="session")
def without_plots():
    """A function: -> a context in which each plot of a task is a blank image that is not even
    composed, for evaluations of which no plot is read."""
    return _without_plots


@contextlib.contextmanager
def _without_plots():
    from multitask.evaluation.task_plots import PLOTS
    from multitask.files import replacing

    def blank(path, source):
        with replacing(path) as temporary:
            Image.new("RGB", (8, 8)).save(temporary, "png")

    with _without_drawing(), pytest.MonkeyPatch.context() as patch:
        for kind in PLOTS:
            patch.setitem(PLOTS, kind, blank)
        yield


@pytest.fixture(scope="session")
def untimed():
    """The speed of an export is measured over a single batch, so that no test waits for it."""
    from multitask.serving import agreement

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agreement, "TIMED_S", 0.0)
        yield


@pytest.fixture(scope="session")
def converted_once(tmp_path_factory):
    """A function: -> a context in which a network is converted to each library once. After that,
    networks of its layers and weights are loaded from the same file."""
    folders, files = tmp_path_factory.mktemp("converted"), {}

    @contextlib.contextmanager
    def once():
        from multitask.model import inference

        original, networks = inference._function, {}

        def function_of(network):
            function = original(network)
            weights = b"".join(weight.tobytes() for weight in network.get_weights())
            networks[function] = inference._architecture(network), weights
            return function

        def keeping(name, converter):
            def write(function, _):
                key = name, *networks[function]
                if key not in files:
                    folder = folders / str(len(files))
                    folder.mkdir()
                    files[key] = converter.write(function, folder)
                return files[key]

            return dataclasses.replace(converter, write=write)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(inference, "_function", function_of)
            for name, converter in inference.CONVERTERS.items():
                patch.setitem(inference.CONVERTERS, name, keeping(name, converter))
            yield

    return once


@pytest.fixture(scope="session")
def mount_disk():
    """A function: folder, bytes -> a context with a `Disk` of tests/small_disk.py."""

    def mount(folder, size):
        folder.mkdir()
        try:
            return contextlib.closing(importlib.import_module("small_disk").Disk(folder, size))
        except OSError as error:
            pytest.skip(f"needs a mount namespace of its own: {error}")

    return mount


@pytest.fixture
def small_disk(mount_disk, tmp_path):
    """A function: bytes -> a `Disk`, which is there until the test ends."""
    with contextlib.ExitStack() as opened:
        yield lambda size: opened.enter_context(mount_disk(tmp_path / "disk", size))


@pytest.fixture(scope="session")
def renames():
    """The module tests/renames.py."""
    return importlib.import_module("renames")


@pytest.fixture(scope="session")
def chromium():
    """The module tests/chromium.py."""
    return importlib.import_module("chromium")


@pytest.fixture(scope="module")
def browser(chromium, tmp_path_factory):
    """A tab of Chromium."""
    if not chromium.PATH:
        pytest.skip("chromium is not installed")
    tab = chromium.Chromium(tmp_path_factory.mktemp("profile"))
    yield tab
    tab.close()


# === The run whose answers are known ===


@pytest.fixture(scope="session")
def known():
    """The module tests/known_answers.py."""
    return importlib.import_module("known_answers")


@pytest.fixture(scope="session")
def data(known, tmp_path_factory):
    return known.paint(tmp_path_factory.mktemp("colours"))


@pytest.fixture(scope="session")
def exported_colours(known, data, untimed, tmp_path_factory):
    """(a run with known answers and a SavedModel in `export`, what its export logged)."""
    from logged import logged

    from multitask.serving.export import export

    run = known.make_run(tmp_path_factory.mktemp("runs") / "colours", data)
    with logged() as lines:
        export(run)
    return run, lines
