"""Specs: what is refused and in which words, what a flag replaces, what is shipped."""

import copy
import fnmatch
import math
import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, PositiveInt

from multitask.spec import (
    BALANCING,
    CONTRASTIVE,
    TRUNK,
    Augmentation,
    DataSpec,
    InputError,
    Kind,
    SpecError,
    check_kind,
    field_of,
    find_spec,
    load_spec,
    near,
    override,
    parse_spec,
    quoted,
    refuse_outside,
    select_tasks,
    shipped_specs,
    shown,
    wanted_phases,
    why_unsafe,
)
from multitask.spec_task import OF_COLUMN

TASK = {
    "name": "artist",
    "train": "train.csv",
    "test": "val.csv",
    "classes": "classes.txt",
    "head": {"kind": "linear", "dropout": 0.2},
    "loss": {"kind": "focal", "gamma": 2.0},
    "schedule": {"kind": "constant", "rate": 1e-3},
}
RAW = {
    "name": "small",
    "trunk": {"schedule": {"kind": "constant", "rate": 1e-3}},
    "task": [{**TASK, "name": name} for name in ("artist", "style", "genre")],
}
ABSENT = object()


def changed(where, value):
    """RAW with one field set (or removed), e.g. `task.2.head.kind`."""
    raw = copy.deepcopy(RAW)
    *tables, name = [int(part) if part.isdigit() else part for part in where.split(".")]
    target = raw
    for table in tables:
        target = target.setdefault(table, {}) if isinstance(target, dict) else target[table]
    if value is ABSENT:
        del target[name]
    else:
        target[name] = value
    return raw


def refusal(raw):
    with pytest.raises(SpecError) as caught:
        parse_spec(raw, source="a.toml")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("a.toml: ")
    return message.removeprefix("a.toml: ")


# === What is refused ===


@pytest.mark.parametrize(
    ("where", "place", "wrong", "meant"),
    [
        ("imagesize", "", "imagesize", "image_size"),
        ("trunk.wieghts", "trunk: ", "wieghts", "weights"),
        ("phases.heads.epoch", "phases.heads: ", "epoch", "epochs"),
        ("early_stopping.patient", "early_stopping: ", "patient", "patience"),
        ("plateau.factr", "plateau: ", "factr", "factor"),
        ("contrastive.temprature", "contrastive: ", "temprature", "temperature"),
        ("features.smoot", "features: ", "smoot", "smote"),
        ("task.2.freeze_dept", 'task[2] "genre": ', "freeze_dept", "freeze_depth"),
        ("task.1.augment.flp", 'task[1] "style": augment: ', "flp", "flip"),
    ],
)
def test_an_unknown_field_is_named_with_its_place_and_what_is_near(where, place, wrong, meant):
    message = refusal(changed(where, 1))
    start = f'{place}unknown field "{wrong}". Expected one of: '
    assert message.startswith(start)
    assert message.endswith(f'. Did you mean "{meant}"?')
    allowed = message[len(start) : message.rindex(". Did")].split(", ")
    assert meant in allowed
    assert allowed == sorted(allowed)


@pytest.mark.parametrize("name", ["trunk", "balancing", "contrastive", "shared"])
def test_a_task_may_be_called_as_a_part_of_ours(name):
    assert parse_spec(changed("task.1.name", name), source="a.toml").task_names[1] == name


@pytest.mark.parametrize("name", ["_trunk", "a/b", "a-head", "Trunk", ""])
def test_no_name_of_a_task_reaches_the_keys_of_ours(name):
    assert refusal(changed("task.1.name", name)).startswith(f'task[1] "{name}": name: ')


def test_names_of_fields_never_meet():
    """Whatever two tasks are called: of these many pairs `_` between them is ambiguous."""
    tasks = ["x", "x_1", "x_true", "val_x", "trunk", "test", "loss", "val_loss", "trunk_rate"]
    fields = ["true", "1", "1_true", "loss", "val_loss", "rate", "x_1"]
    owners = [*tasks, TRUNK, BALANCING, CONTRASTIVE]
    names = [field_of(owner, field) for owner in owners for field in fields]
    assert len(set(names)) == len(owners) * len(fields)
    assert (field_of("x", "top1"), field_of(TRUNK, "rate")) == ("x/top1", "trunk_rate")
    joined = {f"{task}_{field}" for task in tasks for field in fields}
    assert len(joined) < len(tasks) * len(fields)


def test_a_misspelt_field_is_named_rather_than_a_missing_one():
    raw = changed("task.1.train", ABSENT)
    raw["task"][1]["trian"] = "train.csv"
    assert refusal(raw).startswith('task[1] "style": unknown field "trian"')


@pytest.mark.parametrize(
    ("where", "printed"),
    [
        ("name", "name: this field is missing"),
        ("trunk", "trunk: this field is missing"),
        ("trunk.schedule", "trunk.schedule: this field is missing"),
        ("task", "task: this field is missing"),
        ("task.1.name", "task[1]: name: this field is missing"),
        *(
            (f"task.2.{field}", f'task[2] "genre": {field}: this field is missing')
            for field in ("train", "classes", "head", "loss", "schedule")
        ),
        ("task.0.head.kind", 'task[0] "artist": head.kind: this field is missing'),
        ("phases.heads.epochs", "phases.heads.epochs: this field is missing"),
    ],
)
def test_a_missing_field_is_named(where, printed):
    raw = copy.deepcopy(RAW)
    raw["phases"] = {"heads": {"epochs": 1}}
    *tables, name = [int(part) if part.isdigit() else part for part in where.split(".")]
    target = raw
    for table in tables:
        target = target[table]
    del target[name]
    assert refusal(raw) == printed


def test_two_tasks_of_one_name_are_refused():
    printed = 'task[2]: name: two tasks are called "artist"'
    assert refusal(changed("task.2.name", "artist")) == printed


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("image_size", "64"),
        ("image_size", 64.5),
        ("image_size", True),
        ("batch_size", "32"),
        ("seed", True),
        ("validation", "0.1"),
        ("title", 3),
        ("freeze_depth", 1.5),
        ("freeze_depth", True),
        ("trunk", 3),
        ("trunk.batchnorm_momentum", "quick"),
        ("phases.heads", 3),
        ("task.0.train", 3),
        ("task.0.freeze_depth", [40]),
        ("balancing", "uncertainty"),
        ("contrastive.width", 64.5),
        ("task.0.head", "linear"),
        ("task.0.head.kind", 3),
        ("task.0.augment", True),
        ("task.0.augment.flip", "yes"),
        ("task.0.augment.flip", 1),
        ("task.0.augment.crop", 0.9),
        ("task.0.augment.contrast", 1.1),
    ],
)
def test_a_value_of_another_type_is_refused_and_shown(where, value):
    message = refusal(changed(where, value))
    place = f'task[0] "artist": {where[7:]}' if where.startswith("task.") else where
    assert message.startswith(f"{place}: {value!r}: ")
    assert message.split(": ")[-1].startswith("input should be ")


@pytest.mark.parametrize(
    ("where", "wrong", "right"),
    [
        ("image_size", [31, 1025], [32, 1024]),
        ("batch_size", [0, -1], [1]),
        ("seed", [-1, 2**31], [0, 2**31 - 1]),
        ("validation", [-0.01, 0.51, math.nan], [0, 0.5]),
        ("max_missing", [-0.01, 1, math.nan], [0, 0.99]),
        ("max_unknown", [-0.01, 1], [0, 0.99]),
        ("trunk.weight_decay", [-1e-9, math.inf], [0, 1]),
        ("trunk.batchnorm_momentum", [-0.1, 1], [0, 0.99]),
        ("trunk.stochastic_depth", [-0.1, 1], [0, 0.99]),
        ("early_stopping.patience", [0], [1]),
        ("plateau.patience", [0], [1]),
        ("plateau.factor", [0, 1], [0.5]),
        ("plateau.least", [0, 1.1], [1]),
        ("contrastive.weight", [-0.1, math.inf], [0, 2]),
        ("contrastive.temperature", [0, -1], [0.01]),
        ("contrastive.width", [0], [1]),
        ("features.views", [-1], [0, 9]),
        ("features.smote", [-0.1, 1.1, math.nan], [0, 1]),
        ("features.cache", ["yes", "auto "], ["auto", "on", "off"]),
        ("features.dtype", ["float64", "float"], ["float16", "float32"]),
        (
            "features.runtime",
            ["onnx", "torch"],
            ["auto", "litert", "onnxruntime", "openvino", "tensorflow"],
        ),
        ("task.0.weight", [-1, math.inf, math.nan], [0, 7]),
        ("task.0.contrastive_weight", [-1, math.inf], [0, 7]),
        ("task.0.class_weight_exponent", [-0.5], [0, 2]),
        ("task.0.weight_decay", [-1], [0]),
        ("task.0.subset", [0, 1.01, -1], [1, 1e-6]),
        ("task.0.name", ["Artist", "art ist", "", "1st", "a" * 41, "../x"], ["a", "a" * 40]),
        ("task.0.augment.brightness", [-0.1, 1.1], [0, 1]),
        ("task.0.augment.crop_probability", [-0.1, 1.1], [0, 1]),
        ("task.0.augment.contrast", [[1.1, 0.9], [-1, 1], [1, 11]], [[0, 10], [1, 1]]),
        ("task.0.augment.saturation", [[1.1, 0.9], [-1, 1], [1, 11]], [[0, 10]]),
        ("task.0.augment.crop", [[0.9, 0.8], [0.01, 1], [0.9, 1.1]], [[0.05, 1], [1, 1]]),
    ],
)
def test_every_range_holds_its_ends_and_nothing_beyond(where, wrong, right):
    for value in wrong:
        message = refusal(changed(where, value))
        assert f"{where.rsplit('.', 1)[-1]}: {value!r}: " in message
    for value in right:
        spec = parse_spec(changed(where, value), source="a.toml")
        target = spec
        for part in where.replace("task.0", "tasks.0").split("."):
            target = target[int(part)] if part.isdigit() else getattr(target, part)
        assert target == (tuple(value) if isinstance(value, list) else value)


def test_phases_have_their_ranges():
    for phases in ({"epochs": -1}, {"epochs": 1, "rate_factor": 0}, {"epochs": 1.5}):
        assert refusal(changed("phases.finetune", phases)).startswith("phases.finetune.")
    phases = {"epochs": 0, "rate_factor": 2}
    assert parse_spec(changed("phases.heads", phases), source="a").phases.heads.epochs == 0


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("resize", "sqash", "Expected one of: crop, pad, squash. Did you mean"),
        ("resize", "zzz", "Expected one of: crop, pad, squash."),
        ("trunk.batchnorm", "frzen", 'auto, frozen, train. Did you mean "frozen"?'),
    ],
)
def test_a_choice_names_what_is_allowed(where, value, message):
    text = refusal(changed(where, value))
    assert text.startswith(f"{where}: {value!r}: ")
    assert message in text


def test_a_spec_needs_tasks_and_each_its_own_table():
    assert refusal(changed("task", [])).startswith("task: []: ")
    assert "[[task]]" in refusal(changed("task", TASK))
    assert len(refusal(changed("title", ["x"] * 1000))) < 200


def test_near_offers_only_what_is_near():
    assert near("linaer", ["gru", "linear"]) == ' Did you mean "linear"?'
    assert near("zzz", ["gru", "linear"]) == ""


# === Kinds ===


def linear(x, name, *, dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0):
    """A head."""


def dense_stack(x, name, *, units: tuple[PositiveInt, ...], mode: Literal["a", "bb"] = "a"):
    """A head."""


def nothing(x, name):
    """A head without options."""


REGISTRY = {
    "linear": linear,
    "dense_stack": dense_stack,
    "gru": nothing,
    "residual_se": nothing,
}
PLACE = 'data_specs/wikiart.toml: task[2] "genre": head'


def test_an_unknown_kind_reads_as_the_design_says():
    with pytest.raises(SpecError) as caught:
        check_kind(Kind(kind="linaer"), REGISTRY, place=PLACE)
    assert str(caught.value) == (
        'data_specs/wikiart.toml: task[2] "genre": head.kind: unknown kind "linaer". Expected one '
        'of: dense_stack, gru, linear, residual_se. Did you mean "linear"?'
    )


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (
            {"kind": "linear", "dropuot": 0.1},
            ': unknown option "dropuot" of "linear". Expected one of: dropout. '
            'Did you mean "dropout"?',
        ),
        ({"kind": "linear", "x": 1}, ': unknown option "x" of "linear". Expected one of: dropout.'),
        ({"kind": "dense_stack"}, ': "dense_stack" needs the option "units"'),
        ({"kind": "linear", "dropout": 1}, ".dropout: 1: input should be less than 1"),
        ({"kind": "linear", "dropout": "0.1"}, ".dropout: '0.1': input should be a valid number"),
        ({"kind": "dense_stack", "units": 3}, ".units: 3: input should be a list"),
        (
            {"kind": "dense_stack", "units": [3, 0]},
            ".units.1: 0: input should be greater than 0",
        ),
        (
            {"kind": "dense_stack", "units": [3], "mode": "b"},
            ".mode: 'b': Expected one of: a, bb. Did you mean",
        ),
    ],
)
def test_a_wrong_option_is_named(choice, message):
    with pytest.raises(SpecError) as caught:
        check_kind(Kind(**choice), REGISTRY, place=PLACE)
    assert str(caught.value).startswith(PLACE + message)


def test_options_come_back_checked_with_their_defaults():
    assert check_kind(Kind(kind="linear"), REGISTRY, place=PLACE) == {"dropout": 0.0}
    choice = Kind(kind="dense_stack", units=[3, 4])
    assert check_kind(choice, REGISTRY, place=PLACE) == {"units": (3, 4), "mode": "a"}
    assert check_kind(Kind(kind="gru"), REGISTRY, place=PLACE) == {}


# === Flags ===


OVERRIDES = [
    ("name", "other"),
    ("title", "a title"),
    ("licence", "a licence"),
    ("source", "a source"),
    ("images", "images"),
    ("match", "letters"),
    ("image_size", 65),
    ("precision", "bfloat16"),
    ("resize", "pad"),
    ("convert_profiles", False),
    ("batch_size", 7),
    ("seed", 11),
    ("validation", 0.25),
    ("max_missing", 0.5),
    ("max_unknown", 0.5),
    ("freeze_depth", -7),
    ("freeze_depth", "block3a"),
    ("trunk.name", "efficientnetb0"),
    ("trunk.weights", "none"),
    ("trunk.batchnorm", "train"),
    ("trunk.batchnorm_momentum", 0.5),
    ("trunk.stochastic_depth", 0.5),
    ("trunk.weight_decay", 0.25),
    ("trunk.schedule", {"kind": "cosine"}),
    ("phases.heads.epochs", 3),
    ("phases.heads.rate_factor", 0.5),
    ("phases.finetune.epochs", 4),
    ("phases.finetune.rate_factor", 0.75),
    ("phases.finetune.cache", "off"),
    ("phases.finetune.views", 3),
    ("early_stopping.patience", 5),
    ("plateau.patience", 6),
    ("plateau.factor", 0.25),
    ("plateau.least", 0.125),
    ("balancing", {"kind": "uncertainty", "rate": 0.1}),
    ("contrastive.weight", 0.5),
    ("contrastive.temperature", 0.25),
    ("contrastive.width", 64),
    ("features.cache", "off"),
    ("features.views", 3),
    ("features.dtype", "float32"),
    ("features.runtime", "openvino"),
    ("features.smote", 0.5),
    ("task.weight", 3.0),
    ("task.contrastive_weight", 0.5),
    ("task.class_weight_exponent", 0.5),
    ("task.weight_decay", 0.5),
    ("task.freeze_depth", 12),
    ("task.unlabelled", "other"),
    ("task.subset", 0.5),
    ("task.train", "other.csv"),
    ("exclude_near_duplicates", True),
    ("mix", {"kind": "mixup", "alpha": 0.4}),
    ("sampler", {"kind": "balanced"}),
    ("records.margin", 1.5),
    ("records.quality", 80),
    ("features.cache", "off"),
    ("optimizer.ema", 0.99),
    ("task.test", "other.csv"),
    ("task.classes", "other.txt"),
    ("task.head", {"kind": "gru"}),
    ("task.loss", {"kind": "cross_entropy"}),
    ("task.schedule", {"kind": "cosine"}),
    ("task.augment", {"flip": True}),
]


@pytest.mark.parametrize(("field", "value"), OVERRIDES)
def test_a_flag_replaces_its_field_and_no_other(field, value):
    spec = parse_spec(RAW, source="a.toml")
    before, after = spec.to_dict(), override(spec, {field: value}).to_dict()
    *tables, name = field.split(".")

    def set_in(target, tables):
        if isinstance(target, list):
            for inner in target:
                set_in(inner, tables)
        elif tables:
            set_in(target[tables[0]], tables[1:])
        else:
            assert target[name] != value
            full = Augmentation(**value).model_dump() if name == "augment" else value
            target[name] = full

    set_in(before, tables)
    assert after == before


def test_every_field_has_a_flag_test():
    """A new field of the spec needs a line in OVERRIDES.

    But a table needs its columns, and columns their table: tests/data/test_collection.py.
    """
    covered = {field.split(".")[0] for field, _ in OVERRIDES} | {"table"}
    assert covered == {f.alias or name for name, f in DataSpec.model_fields.items()}
    of_tasks = {field.split(".")[1] for field, _ in OVERRIDES if field.startswith("task.")}
    assert (
        of_tasks | {"name"}
        == set(RAW["task"][0])
        | {
            "weight",
            "contrastive_weight",
            "class_weight_exponent",
            "weight_decay",
            "freeze_depth",
            "subset",
            "augment",
            "unlabelled",
        }
        == set(type(parse_spec(RAW, source="a").tasks[0]).model_fields)
        - {"column", *OF_COLUMN}
        - {"label_from", "auxiliary"}  # tests/data/test_path_labels.py
        - {"other"}  # needs `unlabelled`: tests/data/test_others.py
    )


def test_several_flags_at_once_leave_the_spec_itself_alone():
    spec = parse_spec(RAW, source="a.toml")
    new = override(spec, {"seed": 5, "image_size": 64})
    assert (new.seed, new.image_size) == (5, 64)
    assert (spec.seed, spec.image_size) == (0, 224)
    assert new.source_file == "a.toml"
    assert override(spec, {}).to_dict() == spec.to_dict()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("batch_size", 0, "batch_size: 0: input should be greater than 0"),
        (
            "task.subset",
            2,
            "task.subset: 2: input should be less than or equal to 1",
        ),
        (
            "resize",
            "sqash",
            "resize: 'sqash': Expected one of: crop, pad, squash. Did you mean \"squash\"?",
        ),
        (
            "phases.heads.epochs",
            -1,
            "phases.heads.epochs: -1: input should be greater than or equal to 0",
        ),
    ],
)
def test_a_wrong_value_is_named_with_its_field(field, value, message):
    with pytest.raises(SpecError) as caught:
        override(parse_spec(RAW, source="a.toml"), {field: value})
    assert str(caught.value) == message
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("image_sise", 'unknown field. Expected one of: *Did you mean "image_size"?'),
        ("phases.head.epochs", 'unknown field. *heads.* Did you mean "heads"?'),
        ("task.subzet", 'unknown field. *Did you mean "subset"?'),
        ("name.x", "unknown field. Expected one of: *"),
        ("task[stile].subset", 'no such task. *artist, genre, style.* Did you mean "style"?'),
    ],
)
def test_an_unknown_field_is_named_with_a_near_one(field, message):
    with pytest.raises(SpecError) as caught:
        override(parse_spec(RAW, source="a.toml"), {field: 1})
    assert fnmatch.fnmatchcase(str(caught.value), f"{field}: {message}".replace("[", "[[]"))


def test_a_field_of_one_task():
    spec = parse_spec(RAW, source="a.toml")
    before = {task.name: task.subset for task in spec.tasks}
    changed = override(spec, {"task[style].subset": 0.5, "task[genre].head": {"kind": "gru"}})
    assert {task.name: task.subset for task in changed.tasks} == before | {"style": 0.5}
    assert [task.head.kind == "gru" for task in changed.tasks] == [
        task.name == "genre" for task in changed.tasks
    ]


def test_select_tasks_keeps_the_order_of_the_spec():
    spec = parse_spec(RAW, source="a.toml")
    some = select_tasks(spec, ["genre", "artist", "genre"])
    assert some.task_names == ("artist", "genre")
    assert some.tasks == (spec.tasks[0], spec.tasks[2])
    assert some.place("genre", "head") == 'a.toml: task[1] "genre": head'
    with pytest.raises(SpecError) as caught:
        select_tasks(spec, ["genre", "stile"])
    assert str(caught.value) == (
        'tasks: a.toml has no task "stile". Expected one of: artist, genre, style. '
        'Did you mean "style"?'
    )
    with pytest.raises(SpecError, match="tasks: name at least one of: artist, style, genre"):
        select_tasks(spec, [])


# === Files ===


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
        assert spec.task_names == ("artist", "style", "genre")


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


# === The recipe of the mission ===


def kind(choice):
    return {"kind": choice.kind, **choice.options}


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


# === Hostile values, and paths that leave the data folder ===


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "'a'"),
        ("a\x1b\0\n\u202eb", r"'a\x1b\x00\n\u202eb'"),
        ("x" * 10_000_000, "'" + "x" * 36 + "..."),
        ([1, "b"], "[1, 'b']"),
        ("x" * 38, "'" + "x" * 38 + "'"),
    ],
)
def test_a_value_is_quoted_escaped_and_in_short(value, text):
    assert shown(value, 40) == text


def test_a_name_is_quoted_as_a_value_is():
    assert quoted("trian") == '"trian"'
    assert quoted("a\tb") == r'"a\tb"'
    assert quoted("x" * 5000) == '"' + "x" * 76 + '..."'


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("a/b.csv", None),
        ("a..b/c...csv", None),
        (".", None),
        ("", None),
        ("~/a", None),  # a name like another: nothing expands it
        ("/etc/passwd", "absolute"),
        ("\\\\host\\share\\a", "absolute"),
        ("\\a", "absolute"),
        ("C:\\a", "absolute"),
        ("c:a", "absolute"),
        ("..", "`..`"),
        ("a/../../b", "`..`"),
        ("a\\..\\b", "`..`"),
        ("a\0b", "control characters"),
        ("a\nb", "control characters"),
    ],
)
def test_what_a_path_must_not_have(path, reason):
    result = why_unsafe(path)
    assert (result is None) == (reason is None)
    assert reason is None or reason in result


@pytest.mark.parametrize("field", ["images", "task.1.train", "task.1.test", "task.1.classes"])
def test_a_path_that_leaves_the_data_is_refused_unless_allowed(field):
    for path in ("/abs/a", "../a", "a/../../b", "C:a"):
        spec = parse_spec(changed(field, path), source="s.toml")
        with pytest.raises(SpecError) as caught:
            refuse_outside(spec, allowed=False)
        place = "images" if field == "images" else f'task[1] "style": {field.split(".")[-1]}'
        assert str(caught.value).startswith(f"s.toml: {place}: {path!r}: ")
        assert "`allow_outside`" in str(caught.value)
        refuse_outside(spec, allowed=True)
    spec = parse_spec(changed(field, "a\nb"), source="s.toml")
    for allowed in (False, True):
        with pytest.raises(SpecError, match=r"control characters are refused$"):
            refuse_outside(spec, allowed=allowed)
    refuse_outside(parse_spec(changed(field, "a/b..c"), source="s.toml"), allowed=False)


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
