"""A workdir: what may stand in it, what is written whole or not at all, what is read back."""

import importlib.metadata
import json
import os
import platform
import re

import pytest

from multitask.run import Run, check_same_data, check_workdir, open_run, package_versions, start_run
from multitask.spec import InputError


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def refusal(workdir, spec):
    with pytest.raises(InputError) as caught:
        check_workdir(workdir, spec)
    message = str(caught.value)
    assert message.startswith(f"workdir: {workdir}: ")
    assert "\n" not in message
    return message.removeprefix(f"workdir: {workdir}: ")


# === Where a run may go ===


def test_a_new_or_empty_folder_is_taken_and_not_touched(tmp_path, tiny_spec):
    assert check_workdir(tmp_path / "a/b/c", tiny_spec()) is False
    assert names_in(tmp_path) == []
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / ".hidden").touch()
    assert check_workdir(empty, tiny_spec()) is False
    assert names_in(empty) == [".hidden"]


def test_the_same_settings_go_on(tmp_path, tiny_spec):
    start_run(tmp_path / "run", tiny_spec(), tmp_path)
    before = (tmp_path / "run/config.json").read_bytes()
    assert check_workdir(tmp_path / "run", tiny_spec()) is True
    assert (tmp_path / "run/config.json").read_bytes() == before


def test_other_settings_are_refused_by_name(tmp_path, tiny_spec):
    start_run(tmp_path / "run", tiny_spec(), tmp_path)
    message = refusal(tmp_path / "run", tiny_spec(seed=5))
    assert message == (
        "holds a run with other settings (seed: 0 before, 5 now); "
        "name another folder, or give the same settings to resume"
    )
    head = {"kind": "linear", "dropout": 0.5}
    message = refusal(tmp_path / "run", tiny_spec(tasks=("artist",), of_tasks={"head": head}))
    assert "task[0].head.dropout: None before, 0.5 now" in message
    message = refusal(tmp_path / "run", tiny_spec(tasks=("artist", "style")))
    assert "task[2]." in message
    assert "; and " in message
    assert message.count(" before, ") == 4  # and not all the lost task's settings


def test_each_of_two_changes_is_named(tmp_path, tiny_spec):
    start_run(tmp_path / "run", tiny_spec(), tmp_path)
    phases = {"heads": {"epochs": 1}, "finetune": {"epochs": 9}}
    message = refusal(tmp_path / "run", tiny_spec(image_size=64, phases=phases))
    assert "(image_size: 32 before, 64 now; phases.finetune.epochs: 1 before, 9 now)" in message


def test_a_folder_with_other_things_is_refused(tmp_path, tiny_spec):
    (tmp_path / "thesis.tex").write_text("precious")
    message = refusal(tmp_path, tiny_spec())
    assert message == "holds other files (thesis.tex, …) and no run; name a new or empty folder"
    assert names_in(tmp_path) == ["thesis.tex"]


@pytest.mark.parametrize("folders", [("models", "logs"), ("logs/tensorboard", "checkpoint")])
def test_a_start_that_was_stopped_before_its_config_is_taken_up(tmp_path, tiny_spec, folders):
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
    for leftover in (".tmp-999999999-config.json", f"{folders[1]}/.tmp-999999999-a.keras"):
        (tmp_path / leftover).write_text("half")
    assert check_workdir(tmp_path, tiny_spec()) is False
    start_run(tmp_path, tiny_spec(), tmp_path)
    assert check_workdir(tmp_path, tiny_spec()) is True
    assert not list(tmp_path.rglob(".tmp-*"))


@pytest.mark.parametrize("name", ["models/best_model.keras", "logs/notes.txt", "photos/a.jpg"])
def test_a_file_in_a_folder_that_is_called_as_ours_is_not_taken(tmp_path, tiny_spec, name):
    path = tmp_path / name
    path.parent.mkdir()
    path.write_text("precious")
    message = refusal(tmp_path, tiny_spec())
    assert message.startswith(f"holds other files ({path.parent.name}, …) and no run")
    assert path.read_text() == "precious"


def test_folders_without_a_file_are_not_taken_under_another_name(tmp_path, tiny_spec):
    (tmp_path / "photos").mkdir()
    assert refusal(tmp_path, tiny_spec()).startswith("holds other files (photos, …)")
    (tmp_path / "photos").rmdir()
    (tmp_path / "models").symlink_to(tmp_path / "nowhere")
    assert refusal(tmp_path, tiny_spec()).startswith("holds other files (models, …)")


def test_the_config_is_the_first_file_of_a_run(tmp_path, tiny_spec, monkeypatch):
    seen = []
    replace = os.replace

    def look(source, target):
        seen.append(names_in(tmp_path / "run"))
        replace(source, target)

    monkeypatch.setattr(os, "replace", look)
    start_run(tmp_path / "run", tiny_spec(), tmp_path)
    assert seen == [[f".tmp-{os.getpid()}-config.json"]]


def test_a_file_is_no_workdir_nor_is_anything_below_it(tmp_path, tiny_spec):
    file = tmp_path / "file"
    file.write_text("x")
    assert refusal(file, tiny_spec()) == "is a file, not a folder"
    assert refusal(file / "run", tiny_spec()) == f"{file} cannot be written to"
    assert refusal(file / "a/b", tiny_spec()) == f"{file} cannot be written to"
    assert file.read_text() == "x"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_the_right_to_write_is_refused(tmp_path, tiny_spec):
    shut = tmp_path / "shut"
    shut.mkdir(mode=0o500)
    assert refusal(shut / "run", tiny_spec()) == f"{shut} cannot be written to"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "3",
        "null",
        '{"spec": {}}',
        '{"data_dir": "x"}',
        '{"spec": 3, "data_dir": "x"}',
        '{"spec": {}, "data_dir": 3}',
        '"text"',
    ],
)
def test_a_broken_config_is_named(tmp_path, tiny_spec, content):
    (tmp_path / "config.json").write_text(content)
    for use in (lambda: check_workdir(tmp_path, tiny_spec()), lambda: open_run(tmp_path)):
        with pytest.raises(InputError) as caught:
            use()
        message = str(caught.value)
        assert message.startswith(f"{tmp_path / 'config.json'}: not a run's configuration: ")
        assert "\n" not in message


# === A run and back ===


def test_a_run_opens_with_what_it_was_started_with(tmp_path, tiny_spec):
    spec = tiny_spec(title="Ölbild — 絵", validation=0.1)
    workdir, data = tmp_path / "deep/run", tmp_path / "data"
    started = start_run(workdir, spec, data)
    assert names_in(workdir) == ["config.json", "logs", "models"]
    run = open_run(workdir)
    assert run.spec.to_dict() == spec.to_dict()
    assert run.spec.source_file == str(workdir / "config.json")
    assert run.data_dir == data
    assert run.workdir == started.workdir == workdir
    assert open_run(workdir, tmp_path / "moved").data_dir == tmp_path / "moved"
    config = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
    assert config["spec_file"] == "tiny.toml"
    assert config["versions"] == package_versions()
    assert "Ölbild — 絵" in (workdir / "config.json").read_text(encoding="utf-8")


def test_a_run_of_before_color_profiles_goes_on_without_them(tmp_path, tiny_spec):
    spec = tiny_spec()
    start_run(tmp_path / "run", spec, tmp_path)
    assert open_run(tmp_path / "run").spec.convert_profiles
    config = json.loads((tmp_path / "run/config.json").read_text(encoding="utf-8"))
    del config["spec"]["convert_profiles"]
    (tmp_path / "run/config.json").write_text(json.dumps(config), encoding="utf-8")
    assert not open_run(tmp_path / "run").spec.convert_profiles
    with pytest.raises(InputError, match="convert_profiles: False before, True now"):
        check_workdir(tmp_path / "run", spec)
    assert check_workdir(tmp_path / "run", tiny_spec(convert_profiles=False))


def test_a_run_of_before_other_new_fields_goes_on_with_their_defaults(tmp_path, tiny_spec):
    start_run(tmp_path / "run", tiny_spec(), tmp_path)
    config = json.loads((tmp_path / "run/config.json").read_text(encoding="utf-8"))
    del config["spec"]["features"]["runtime"]
    del config["spec"]["phases"]["finetune"]["cache"]
    (tmp_path / "run/config.json").write_text(json.dumps(config), encoding="utf-8")
    assert check_workdir(tmp_path / "run", tiny_spec())
    other = tiny_spec(features={"runtime": "litert"})
    with pytest.raises(InputError, match=r"features\.runtime: 'auto' before, 'litert' now"):
        check_workdir(tmp_path / "run", other)


def test_the_data_folder_is_kept_whole(tmp_path, tiny_spec, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start_run(tmp_path / "run", tiny_spec(), type(tmp_path)("data"))
    monkeypatch.chdir("/")
    assert open_run(tmp_path / "run").data_dir == tmp_path / "data"


def test_starting_again_keeps_the_models_and_clears_what_was_half_written(tmp_path, tiny_spec):
    run = start_run(tmp_path / "run", tiny_spec(), tmp_path)
    run.best_model.write_text("model")
    (run.models / ".tmp-999999999-best_model.keras").write_text("half")
    (run.workdir / ".tmp-999999999-checkpoint").mkdir()
    (run.workdir / ".tmp-999999999-checkpoint/part").write_text("half")
    start_run(tmp_path / "run", tiny_spec(), tmp_path)
    assert names_in(run.models) == ["best_model.keras"]
    assert names_in(run.workdir) == ["config.json", "logs", "models"]


def test_other_data_than_the_run_began_with_are_refused(tmp_path, tiny_spec):
    start_run(tmp_path / "run", tiny_spec(), tmp_path, fingerprint="abc")
    check_same_data(tmp_path / "run", "abc")
    with pytest.raises(InputError, match="run: the images or labels have changed since"):
        check_same_data(tmp_path / "run", "abd")
    start_run(tmp_path / "old", tiny_spec(), tmp_path)  # of a version that kept none
    check_same_data(tmp_path / "old", "abc")


def test_a_run_that_is_not_there(tmp_path):
    with pytest.raises(InputError) as caught:
        open_run(tmp_path / "none")
    assert str(caught.value) == (
        f"workdir: {tmp_path / 'none'}: there is no such folder; `multitask train` makes one"
    )
    with pytest.raises(InputError, match=r"holds no run \(no config.json\); `multitask train`"):
        open_run(tmp_path)


def test_a_config_with_a_wrong_spec_names_the_field(tmp_path, tiny_spec):
    start_run(tmp_path, tiny_spec(), tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["spec"]["batch_size"] = 0
    path.write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"config.json: batch_size: 0: input should be greater"):
        open_run(tmp_path)


def test_the_places_of_a_run(tmp_path, tiny_spec):
    run = Run(tmp_path, tiny_spec(), tmp_path)
    assert run.best_model == tmp_path / "models/best_model.keras"
    assert run.best_model_of("genre") == tmp_path / "models/best_model_genre.keras"
    assert (run.results, run.logs) == (tmp_path / "results", tmp_path / "logs")
    assert run.checkpoint == tmp_path / "checkpoint"


def test_versions_are_those_that_are_installed():
    versions = package_versions()
    assert versions["python"] == platform.python_version()
    for name in ("keras", "numpy", "pandas"):
        assert versions[name] == importlib.metadata.version(name)
        assert versions[name] == __import__(name).__version__
    assert {"tensorflow", "tensorflow-cpu"} & set(versions)


def test_a_run_of_another_version_is_one_clear_line(tmp_path, tiny_spec):
    """Format 1 had other names for the splits; nothing of it is read by guessing."""
    start_run(tmp_path, tiny_spec(), tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    del config["format"]
    path.write_text(json.dumps(config))
    message = rf"^{re.escape(str(path))}: format 1, written by another version of multitask; "
    for call in (open_run, lambda workdir: check_workdir(workdir, tiny_spec())):
        with pytest.raises(InputError, match=message):
            call(tmp_path)
