"""Bad models and queries: one clear line, exit status 2, nothing written."""

import subprocess
import sys
import urllib.request

import pytest
from refused_training import content, refused, train_refused, truncated

from multitask.run import open_run
from multitask.spec import find_spec, load_spec


@pytest.mark.parametrize("kind", ["a text", "an empty file", "a zip", "nothing"])
def test_a_model_file_that_is_not_one(capsys, place, trained, kind):
    path = place / "other.keras"
    if kind == "a zip":
        import zipfile

        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("config.json", "{}")
    elif kind != "nothing":
        path.write_text("a text" if kind == "a text" else "")
    wanted = f"{path}: no such model" if kind == "nothing" else f"{path}: not a model file"
    image = next((place / "data/images").rglob("*.png"))
    for command in ("evaluate", "export", "similar"):
        images = [str(image)] if command == "similar" else []
        argv = [f"--workdir={trained.workdir}", f"--model={path}", *images]
        line = refused(capsys, place, command, *argv)
        assert line.startswith(wanted)
    line = train_refused(
        capsys, place, f"--workdir={place / 'new'}", "--phase=finetune", f"--init_from={path}"
    )
    assert wanted in line


def test_a_model_of_other_tasks(capsys, place, trained, known):
    path = place / "other.keras"
    known.colour_model(("shade",)).save(path)
    line = train_refused(
        capsys, place, f"--workdir={place / 'new'}", "--phase=finetune", f"--init_from={path}"
    )
    assert "{'shade': 12}" in line
    assert "{'shade': 12, 'warmth': 3}" in line


def test_no_imagenet_weights_and_no_network(capsys, place, monkeypatch, tmp_path_factory):
    """With an empty cache of weights, and a proxy that nobody listens at."""
    cache = tmp_path_factory.mktemp("keras")
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(cache))
    monkeypatch.setattr(urllib.request, "_opener", None)  # it knows the proxies of its first use
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    line = train_refused(
        capsys,
        place,
        f"--spec={find_spec('wikiart')}",
        "--trunk=efficientnetb0",
        f"--data_dir={_wikiart_layout(place)}",
    )
    for text in ("imagenet", "--trunk_weights=FILE", "--trunk_weights=none", "network"):
        assert text in line
    assert not (place / "run").exists()
    assert list(cache.iterdir())  # Keras looked there


def _wikiart_layout(place):
    """Class files where the shipped spec looks for them; nothing else is needed by then."""
    folder = place / "layout"
    (folder / "wikiart_csv").mkdir(parents=True)
    for task in load_spec("wikiart").tasks:
        (folder / task.classes).write_text("0 one\n1 two\n")
    return folder


@pytest.mark.slow
def test_a_real_process_says_one_line_too(place, trained):
    """TensorFlow's own notes on unreadable images stay out of stderr."""
    name = (place / "data/lists/shade_val.csv").read_text().split(",")[0]
    truncated(place / "data/images" / name)
    before = content(place)
    argv = ["evaluate", f"--workdir={trained.workdir}", "--max_missing=0"]
    result = subprocess.run(
        [sys.executable, "-m", "multitask", *argv],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert name in line
    assert content(place) == before


def test_a_run_opens_where_its_data_was(trained, place):
    """What the refusals above protect."""
    assert open_run(trained.workdir).data_dir == (place / "data").resolve()


def similar_refused(capsys, trained, *argv) -> str:
    return refused(capsys, trained.workdir.parent, "similar", f"--workdir={trained.workdir}", *argv)


def test_queries_that_cannot_be_answered(capsys, place, trained):
    image = next((place / "data/images").rglob("*.png"))
    line = similar_refused(capsys, trained)
    assert "name at least one image" in line
    gone = place / "gone.png"
    assert similar_refused(capsys, trained, f"--query={gone}").startswith(f"{gone}: no such file")
    (place / "text.png").write_text("a text")
    line = similar_refused(capsys, trained, f"--query={place / 'text.png'}")
    assert line.startswith(f"--query: {place / 'text.png'}: ")
    assert "unknown content" in line
    line = similar_refused(capsys, trained, f"--query={image}", "--task=shadow")
    assert line == '--task: "shadow". Expected one of: shade, warmth. Did you mean "shade"?'
    line = similar_refused(capsys, trained, f"--query={image}", "--top_k=0")
    assert "--top_k: '0': expected a positive integer" in line
    (place / "again").mkdir()
    (place / "again" / image.name).write_bytes(image.read_bytes())
    line = similar_refused(capsys, trained, str(image), str(place / "again"))
    assert f"similar_{image.stem}.png" in line
    line = similar_refused(capsys, trained, str(image), f"--out={place / 'text.png'}")
    assert "cannot be written" in line


def test_similar_needs_a_model_and_data(capsys, place, trained):
    image = next((place / "data/images").rglob("*.png"))
    line = similar_refused(capsys, trained, str(image), f"--data_dir={place / 'moved'}")
    assert line == f"--data_dir: {place / 'moved'}: is not a folder"
    trained.best_model.unlink()
    line = similar_refused(capsys, trained, str(image))
    assert line == f"{trained.best_model}: no such model; `multitask train` makes it"
