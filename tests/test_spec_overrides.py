"""Flags that replace fields of a spec."""

import fnmatch

import pytest
from small_spec import RAW

from multitask.spec import Augmentation, DataSpec, SpecError, override, parse_spec, select_tasks
from multitask.spec_task import OF_COLUMN

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
    ("phases.finetune.mix", {"kind": "cutmix"}),
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
    ("co_occurrence", "auto"),
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
