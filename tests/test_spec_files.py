"""Specs in files: round trips, the shipped specs and the recipe of `wikiart`."""

import sys
from pathlib import Path

import pytest
from small_spec import kind

from multitask.spec import (
    Augmentation,
    InputError,
    SpecError,
    find_spec,
    load_spec,
    override,
    parse_spec,
    refuse_outside,
    shipped_specs,
    wanted_phases,
)


def test_a_spec_survives_its_round_trip():
    spec = load_spec("wikiart")
    again = parse_spec(spec.to_dict(), source=spec.source_file)
    assert again == spec
    assert again.to_dict() == spec.to_dict()
    assert again.tasks[0].head.options == spec.tasks[0].head.options
    assert spec.place("genre", "head.kind") == (f'{spec.source_file}: task[2] "genre": head.kind')
    assert spec.place(None, "trunk") == f"{spec.source_file}: trunk"


def test_a_spec_as_toml_is_the_same_spec(tmp_path, monkeypatch):
    for name in shipped_specs():
        spec = load_spec(name)
        (tmp_path / "again.toml").write_text(spec.to_toml(), encoding="utf-8")
        assert load_spec(str(tmp_path / "again.toml")).to_dict() == spec.to_dict()
    monkeypatch.setitem(sys.modules, "tomli_w", None)
    with pytest.raises(InputError, match=r"needs tomli_w: pip install '\.\[tune\]'"):
        spec.to_toml()


def test_every_shipped_spec_loads_under_its_name():
    assert {"wikiart", "demo"} <= set(shipped_specs())
    for name, path in shipped_specs().items():
        spec = load_spec(name)
        assert spec.name == name
        assert Path(spec.source_file) == path
        assert spec.main_tasks == ("artist", "style", "genre")


def test_a_folder_of_the_same_name_does_not_hide_a_shipped_spec(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("demo").mkdir()
    assert find_spec("demo") == shipped_specs()["demo"]
    assert load_spec("demo").name == "demo"


def test_a_spec_may_be_a_file_of_any_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = '\ufeffname = "mine"\n'
    text += shipped_specs()["demo"].read_text(encoding="utf-8").split('name = "demo"', 1)[1]
    Path("mine.toml").write_text(text, encoding="utf-8")
    assert load_spec("mine.toml").name == "mine"
    assert load_spec("mine.toml").source_file == "mine.toml"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wikart", 'spec: no spec called "wikart". Expected one of: '),
        ("wikart", 'Did you mean "wikiart"?'),
        ("wikart.toml", 'spec: wikart.toml: no such file. Did you mean "wikiart"?'),
        ("specs/wikart", "spec: specs/wikart: no such file."),
    ],
)
def test_a_spec_that_is_not_there(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError) as caught:
        find_spec(name)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name = ", "not valid TOML: "),
        (b'name = "a"\nname = "b"\n', "not valid TOML: "),
        (b'name = "\xff"\n', "cannot be read: "),
        (b"", "this field is missing"),
    ],
)
def test_a_broken_spec_file_is_named(tmp_path, content, message):
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(SpecError) as caught:
        load_spec(str(path))
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_wikiart_spec_is_the_recipe_of_the_mission():
    spec = load_spec("wikiart")
    assert (spec.image_size, spec.batch_size, spec.freeze_depth) == (224, 32, None)
    assert (spec.trunk.name, spec.trunk.weights) == ("efficientnetb2", "imagenet")
    assert spec.trunk.weight_decay == 1e-5
    assert kind(spec.trunk.schedule) == {"kind": "cosine_restarts", "rate": 5e-4, "period": 2000}
    assert (spec.phases.heads.epochs, spec.phases.heads.rate_factor) == (7, 1.0)
    assert (spec.phases.finetune.epochs, spec.phases.finetune.rate_factor) == (10, 0.1)
    assert spec.early_stopping.patience == 12
    assert (spec.balancing, spec.contrastive.weight) == (None, 0)
    assert (spec.validation, spec.max_missing) == (0.05, 0.0)

    artist, style, genre = spec.tasks
    assert (artist.freeze_depth, style.freeze_depth, genre.freeze_depth) == (-40, -30, -60)
    for task in spec.tasks:
        assert task.weight_decay == 1e-5
        assert task.class_weight_exponent == 1.0
        assert task.subset == 1.0
        assert task.loss.kind == "focal"
        assert task.loss.options["gamma"] == 2.0
        for file, ending in (("train", "csv"), ("test", "csv"), ("classes", "txt")):
            stem = {"classes": "class", "test": "val"}.get(file, file)
            assert getattr(task, file) == f"wikiart_csv/{task.name}_{stem}.{ending}"
    assert style.loss.options["alpha"] == 0.25
    assert kind(artist.head) == {
        "kind": "residual_se",
        "units": 1536,
        "residual_units": 768,
        "se_units": 128,
        "dropout": [0.4, 0.3],
    }
    assert kind(style.head) == {
        "kind": "dense_stack",
        "units": [1024, 512, 256],
        "dropout": [0.3, 0.3, 0.2],
    }
    assert kind(genre.head) == {
        "kind": "dense_stack",
        "units": [1024, 512, 256],
        "dropout": [0.3, 0.25, 0.2],
    }
    assert kind(artist.schedule) == {"kind": "cosine_restarts", "rate": 5e-4, "period": 2000}
    assert kind(style.schedule) == {"kind": "cosine_restarts", "rate": 2e-3, "period": 1000}
    assert kind(genre.schedule) == {"kind": "exponential", "rate": 5e-4, "decay": 0.02}
    gentle = {"flip": True, "brightness": 0.1, "contrast": (0.9, 1.1), "saturation": (0.9, 1.1)}
    assert artist.augment == Augmentation(
        flip=True, brightness=0.2, contrast=(0.8, 1.2), saturation=(0.8, 1.2)
    )
    assert style.augment == Augmentation(**gentle, crop=(0.9, 1.0))
    assert genre.augment == Augmentation(**gentle, crop=(0.95, 1.0), crop_probability=0.5)


def test_shipped_specs_stay_inside():
    for name in shipped_specs():
        refuse_outside(load_spec(name), allowed=False)


# === Phases ===


def test_wanted_phases():
    spec = load_spec("wikiart")
    assert wanted_phases(spec, "all") == ("heads", "finetune")
    assert wanted_phases(spec, "heads") == ("heads",)
    assert wanted_phases(spec, "finetune") == ("finetune",)


@pytest.mark.parametrize("empty", ["heads", "finetune"])
def test_a_phase_of_no_epochs_is_not_wanted(empty):
    spec = override(load_spec("wikiart"), {f"phases.{empty}.epochs": 0})
    assert wanted_phases(spec, "all") == tuple({"heads", "finetune"} - {empty})
    message = f"^`phase={empty}`: has 0 epochs to train; give `phases.{empty}.epochs`$"
    with pytest.raises(InputError, match=message):
        wanted_phases(spec, empty)
