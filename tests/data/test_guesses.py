"""Guesses about realistic tables: a museum's export, and classes.csv of Kaggle's WikiArt."""

import tomllib

import numpy as np
import pandas as pd
import pytest

from multitask.data.column_kinds import find_separator, read_facts
from multitask.data.guesses import determination, guess_columns, task_name
from multitask.data.spec_text import quote_toml, write_spec
from multitask.spec import InputError
from multitask.spec_task import Task


def kaggle(rows=600, seed=0):
    """A table like `classes.csv` of Kaggle's WikiArt: the list in `genre` is really the style."""
    rng = np.random.default_rng(seed)
    styles = rng.choice(["Realism", "Cubism", "Pop Art"], rows, p=[0.5, 0.3, 0.2])
    second = rng.random(rows) < 0.05
    genre = [
        f"['{style}', 'Dada']" if two else f"['{style}']"
        for style, two in zip(styles, second, strict=True)
    ]
    return pd.DataFrame(
        {
            "filename": [f"{style}/a_{i}.jpg" for i, style in enumerate(styles)],
            "artist": rng.choice([f"artist {i}" for i in range(20)], rows),
            "genre": genre,
            "description": [f"the-{i}th-view" for i in range(rows)],
            "phash": [f"{x:016x}" for x in rng.integers(2**60, 2**63, rows)],
            "width": rng.integers(800, 1300, rows),
            "height": rng.integers(800, 1300, rows),
            "genre_count": [text.count("'") // 2 for text in genre],
            "subset": rng.choice(["train", "test", "uncertain artist"], rows, p=[0.7, 0.2, 0.1]),
        }
    )


def museum(objects=300, seed=0):
    """A table like a museum's export: one row per photograph, several of some objects."""
    rng = np.random.default_rng(seed)
    number = np.arange(objects)
    table = pd.DataFrame(
        {
            "object number": [f"SK-A-{i + 100}" for i in number],
            "inventory number": [f"{1900 + i // 9}.{i % 9 + 1}" for i in number],
            "title": [f"A view of the village near the river, {i}" for i in number],
            "maker": rng.choice(["Jan Steen", "Judith Leyster", "Unknown", "anonymous"], objects),
            "date": rng.choice(["c. 1650", "1651-1660", "late 19th century", "1889"], objects),
            "classification": rng.choice(["painting", "print", "drawing"], objects),
            "medium": rng.choice(["oil", "ink", "pen", "pen; ink"], objects),
            "dimensions": [f"h {a} cm × w {b} cm" for a, b in zip(number + 9, number, strict=True)],
            "credit line": rng.choice(["Gift of the heirs", "Bequest"], objects),
            "on view": rng.choice(["yes", "no"], objects),
            "country": "Netherlands",
        }
    )
    table = table.iloc[np.repeat(number, rng.choice([1, 2, 3], objects))].reset_index(drop=True)
    table["photo number"] = [f"PH{i:05}" for i in range(len(table))]
    table["image file"] = [f"{i:05}.tif" for i in range(len(table))]
    table["page"] = [f"https://museum.example/{i}" for i in range(len(table))]
    return table


def roles(guesses):
    return {guess.name: guess.role for guess in guesses.columns}


def reason(guesses, column):
    return next(guess.reason for guess in guesses.columns if guess.name == column)


def pairs(rows=200, **columns):
    """A table of images with some columns."""
    return pd.DataFrame({"file": [f"{i}.jpg" for i in range(rows)], **columns})


def warnings_with(guesses, word):
    return [line for line in guesses.warnings if word in line]


# === Tables ===


def test_kaggles_list():
    frame = kaggle()
    guesses = guess_columns(frame)
    assert roles(guesses) == {
        "filename": "image",
        "artist": "task",
        "genre": "task",
        "description": "none",
        "phash": "none",
        "width": "none",
        "height": "none",
        "genre_count": "none",
        "subset": "split",
    }
    assert reason(guesses, "phash") == "hashes"
    assert reason(guesses, "width").startswith("numbers that measure")
    assert reason(guesses, "genre_count").startswith("numbers that measure")
    genre = guesses.tasks[1]
    assert (
        genre.classes
        == frame[~frame["genre"].str.contains(",")]["genre"].str[2:-2].value_counts().to_dict()
    )
    assert genre.several == frame["genre"].str.contains(",").sum()
    excluded = (frame["subset"] == "uncertain artist").sum()
    assert warnings_with(guesses, f"subset: {excluded} of 600 rows are neither")


def test_a_museums_export():
    frame = museum()
    guesses = guess_columns(frame)
    assert (guesses.image, guesses.split, guesses.group) == ("image file", None, "object number")
    assert [task.column for task in guesses.tasks] == ["maker", "classification", "medium"]
    reasons = {g.name: g.reason.split(":")[0] for g in guesses.columns if g.role == "none"}
    assert reasons == {
        "inventory number": "identifier",
        "title": "free text",
        "date": "dates",
        "dimensions": "measures",
        "credit line": 'not visible in the image ("credit" in its name)',
        "on view": "yes or no, usually about the record",
        "country": "one value only",
        "photo number": "identifier",
        "page": "URLs",
    }
    medium = guesses.tasks[2]
    assert medium.separator == ";"
    assert medium.several == (frame["medium"] == "pen; ink").sum()
    assert guesses.tasks[0].vague == {"anonymous": (frame["maker"] == "anonymous").sum()}
    assert guesses.tasks[0].missing == {"Unknown": (frame["maker"] == "Unknown").sum()}
    assert warnings_with(guesses, 'column "country": one value only: "Netherlands"')


def test_names_of_the_user_override_guesses():
    frame = museum()
    guesses = guess_columns(frame, image="photo number", group="inventory number", tasks=["date"])
    assert (guesses.image, guesses.group) == ("photo number", "inventory number")
    assert [task.column for task in guesses.tasks] == ["date"]
    assert reason(guesses, "maker") == "not named as a task"


def test_a_small_table():
    frame = pairs(6, style=["a", "b"] * 3, split=["train"] * 4 + ["test"] * 2)
    guesses = guess_columns(frame)
    assert roles(guesses) == {"file": "image", "style": "task", "split": "split"}


# === Columns ===


@pytest.mark.parametrize(
    ("cells", "role", "word"),
    [
        (np.arange(200) % 27, "task", "27 values"),  # class indices
        (np.arange(200) % 27 + 1, "task", "27 values"),
        (np.arange(200) % 11 + 129, "task", "11 values"),  # behind those of another task
        (np.arange(200) % 150 + 129, "none", "not consecutive"),
        (np.arange(200) % 27 * 10, "none", "not consecutive"),
        (np.arange(200) / 7, "none", "decimals"),
        ([f"{i % 70},{i % 7}" for i in range(200)], "none", "decimals"),
        (1500 + np.arange(200) % 150, "none", "dates"),
        ([f"{1500 + i % 50}-{1501 + i % 50}" for i in range(200)], "none", "dates"),
        (["12 May 1890", "ca. 1650", "early 16th century", "1889-03-02"] * 50, "none", "dates"),
        ([f"30 x {i % 50} cm" for i in range(200)], "none", "measures"),
        (["72.4 × 91.4 cm (28 1/2 × 36 in.)"] * 100 + ["1 m"] * 100, "none", "measures"),
        ([f"{i * 7919:08x}-aaaa"[:8] + "abcdef12" for i in range(200)], "none", "hashes"),
        ([f"https://x.example/{i % 9}" for i in range(200)], "none", "URLs"),
        ([f"thumbs/{i % 100}.jpg" for i in range(200)], "none", "names of image files"),
        ([f"Portrait of the painter's wife number {i}" for i in range(200)], "none", "free text"),
        ([f"Smith{'abcdefghij'[i % 10] * (i // 10 + 1)}" for i in range(200)], "none", "hardly"),
        ([True, False] * 100, "none", "yes or no"),
        ([None] * 200, "none", "no value"),
        (["unknown", "-"] * 100, "none", "no value"),
        (["x", None] * 100, "none", "one value only"),
        ([b"\xff\xd8"] * 200, "none", "binary"),
        ([{"bytes": b"", "path": f"{i}"} for i in range(200)], "none", "binary"),
        ([f"{i % 50 + 100} B.C." for i in range(200)], "none", "dates"),
        ([pd.Timestamp("1890-05-12")] * 100 + [pd.Timestamp("1891-05-12")] * 100, "none", "dates"),
        ([f"Inv. {i}" for i in range(199)] + ["Cat. 7b"], "none", "identifier"),
        (["19th century painting", "Baroque"] * 100, "task", "2 values"),
        (["A1", "B2", "C3"] * 66 + ["A1", "A1"], "task", "3 values"),
        (["Monet, Claude", "Lorrain, Claude", "Gellée, Claude"] * 66 + ["x"] * 2, "task", "4 "),
    ],
)
def test_each_kind_of_column_has_its_role_and_its_reason(cells, role, word):
    frame = pairs(style=["a", "b"] * 100)
    frame["column"] = pd.Series(list(cells), dtype=object)
    guesses = guess_columns(frame)
    assert roles(guesses)["column"] == role
    assert word in reason(guesses, "column")


def test_a_long_tail_of_rare_values_is_a_task_with_fewest_examples():
    names = [f"major {'abcde'[i % 5]}" for i in range(3000)]
    names += [
        f"minor {chr(97 + i % 26)}{chr(97 + i // 26 % 26)}{chr(97 + i // 676)}" for i in range(1500)
    ]
    (task,) = guess_columns(pairs(4500, artist=names)).tasks
    assert task.min_examples == 10
    assert len(task.classes) == 1505
    assert task.labels == 3000


def test_the_separator_is_one_whose_parts_are_values():
    assert find_separator({"a|b": 3, "a": 2, "b": 2}) == "|"
    assert find_separator({"a; b": 3, "b; c": 2, "c; a": 2}) == ";"
    assert find_separator({"oil, ink": 3, "oil": 2, "ink": 2}) == ","
    assert find_separator({"Monet, Claude": 3, "Lorrain, Claude": 2}) is None
    assert find_separator({"Realism/a.jpg": 1, "Realism/b.jpg": 1, "Cubism/c.jpg": 1}) is None
    assert find_separator({"Still life; with fruit": 1, "a": 500, "b": 500}) is None
    assert find_separator({"a": 1}) is None


def test_the_group_is_an_identifier_that_some_rows_share():
    object_id = np.repeat(np.arange(100) + 5000, 2)
    frame = pairs(style=["a", "b"] * 100, object_id=object_id, other=object_id * 1.5)
    guesses = guess_columns(frame)
    assert guesses.group == "object_id"
    assert reason(guesses, "object_id").startswith("100 values in 200 rows, up to 2 images each")
    # The date of an object does not name the object, although its photographs share it.
    frame["object date"] = frame["object begin date"] = np.repeat(np.arange(40) + 1600, 5)
    guesses = guess_columns(frame)
    assert guesses.group == "object_id"
    assert reason(guesses, "object date") == reason(guesses, "object begin date") == "dates"
    # Numbers that could be years, in a column that names objects.
    frame["Inventar-Nr."] = np.repeat(np.arange(100) + 1800, 2)
    assert guess_columns(frame.drop(columns="object_id")).group == "Inventar-Nr."
    frame = frame.drop(columns="Inventar-Nr.")
    # A column whose values do not repeat is an identifier.
    frame["object_id"] = np.arange(200) + 5000
    guesses = guess_columns(frame.drop(columns="other"))
    assert guesses.group is None
    assert reason(guesses, "object_id").startswith("identifier")


def test_facts_of_a_column_are_counted():
    facts = read_facts(pd.DataFrame({"c": ["a", "a", "b|a", "b", None, "NA"]}), "c")
    assert facts.values == {"a": 2, "b": 1, "b|a": 1}  # one cell is too few for a separator
    assert (facts.missing, facts.several) == ({"": 1, "NA": 1}, 0)
    facts = read_facts(pd.DataFrame({"c": ["a", "a|b", "b|a", "b", None, "NA"]}), "c")
    assert (facts.separator, facts.several, facts.filled) == ("|", 2, 2)


def test_a_credit_line_is_not_a_group():
    frame = pairs(
        style=["a", "b"] * 100, credit_line=[f"Gift, 19{i % 90 + 10}" for i in range(200)]
    )
    guesses = guess_columns(frame)
    assert guesses.group is None
    assert roles(guesses)["credit_line"] == "none"


# === Warnings ===


def test_a_task_that_another_one_determines_is_named():
    rng = np.random.default_rng(0)
    style = rng.integers(0, 6, 1000)
    frame = pairs(
        1000,
        style=[f"style {i}" for i in style],
        genre=[f"genre {i // 2}" for i in style],
        other=[f"other {i}" for i in rng.integers(0, 4, 1000)],
    )
    guesses = guess_columns(frame)
    assert guesses.warnings == (
        'task "genre" is a function of task "style": 100 % of 1,000 images have the most frequent '
        '"genre" of their "style"; its accuracy adds nothing to that of "style"',
    )
    frame.loc[:14, "genre"] = ["genre 9"] * 15
    share = frame.groupby("style")["genre"].agg(lambda g: g.value_counts().max()).sum() / 1000
    (warning,) = guess_columns(frame).warnings
    assert f'"genre" is nearly a function of task "style": {share * 100:.1f} %' in warning


def test_determination_is_that_of_pandas():
    rng = np.random.default_rng(1)
    one, two = rng.integers(-1, 30, 400), rng.integers(-1, 4, 400)
    frame = pd.DataFrame({"one": one, "two": two})[(one >= 0) & (two >= 0)]
    frame = frame[frame.groupby("one")["one"].transform("size") > 1]
    expected = frame.groupby("one")["two"].agg(lambda g: g.value_counts().max()).sum() / len(frame)
    share, majority, rows = determination(one, two)
    assert (share, rows) == (pytest.approx(expected), len(frame))
    assert majority == pytest.approx(frame["two"].value_counts(normalize=True).max())
    assert determination(np.arange(5), np.zeros(5, int)) == (0, 0, 0)


def test_a_constant_task_is_not_determined_by_another():
    frame = pairs(style=["a", "b"] * 100, genre=["x"] * 199 + ["y"])
    assert not warnings_with(guess_columns(frame, tasks=["style", "genre"]), "function")


def test_classes_of_one_example_are_named():
    frame = pairs(style=["a"] * 99 + ["b"] * 99 + ["c", "d"])
    assert warnings_with(guess_columns(frame), "one example") == [
        'task "style": 2 of 4 classes have one example ("c" 1, "d" 1), too few to train and to '
        "evaluate; raise min_examples"
    ]


@pytest.mark.parametrize(
    "name",
    ["unbekannt", "Maler unbekannt", "Inconnu", "autor desconocido", "Onbekend", "anoniem",
     "Anónimo", "Anonyme", "Pittore sconosciuto", "Unidentified artist"],
)  # fmt: skip
def test_classes_that_may_mean_no_label_are_named(name):
    frame = pairs(maker=[name, "Ann", "Bo", "Connie Anomaly"] * 50)
    assert guess_columns(frame).warnings == (
        f'task "maker": classes that may mean "no label": "{name}" 50; if so, add them to missing',
    )


def test_leaks_between_the_splits_are_named():
    frame = pairs(
        split=["train"] * 150 + ["test"] * 50,
        style=["a", "b"] * 100,
        object_id=[*range(149), 149, 149, *range(150, 199)],
    )
    frame.loc[199, "file"] = "0.jpg"
    guesses = guess_columns(frame)
    assert guesses.group == "object_id"
    assert guesses.warnings == (
        "1 row repeats the image of an earlier row",
        'leak: 2 train images belong to the same image or group as a test image (first: "0.jpg")',
    )


def test_a_guess_that_leaves_one_class_is_not_a_task():
    """The values repeat, but only lists of one value have a label, and that is always the same."""
    guesses = guess_columns(pairs(style=["a", "b"] * 100, words=[["red"], ["red", "blue"]] * 100))
    assert [task.name for task in guesses.tasks] == ["style"]
    assert {guess.name: guess.role for guess in guesses.columns}["words"] == "none"
    assert guesses.columns[-1].reason == 'only one value: "red" 100; a task needs at least 2'
    with pytest.raises(InputError, match=r'^tasks: "words": only one value'):
        guess_columns(pairs(words=[["red"], ["red", "blue"]] * 100), tasks=["words"])


# === Bad input ===


@pytest.mark.parametrize(
    ("frame", "options", "message"),
    [
        (pairs(0), {}, "the table has no rows"),
        (
            pd.DataFrame({"a": ["x", "y"] * 9, "b": ["u", "v"] * 9}),
            {},
            "image: no column holds names of image files; name one. Expected one of: a, b.",
        ),
        (
            pairs(note=[f"a note on the image {i}" for i in range(200)]),
            {},
            'tasks: no column looks like a task ("note": free text: 200 different values in 200 '
            "rows); name the tasks",
        ),
        (
            pairs(style=["a", "b"] * 100),
            {"tasks": ["stlye"]},
            'tasks: unknown column "stlye". Expected one of: file, style. Did you mean "style"?',
        ),
        (
            pairs(style=["a", "b"] * 100),
            {"image": "fiel"},
            'image: unknown column "fiel". Expected one of: file, style. Did you mean "file"?',
        ),
        (
            pairs(style=["a", "b"] * 100),
            {"tasks": ["style"], "group": "style"},
            'group: "style" is named as task and as group',
        ),
        (
            pairs(style=["a"] * 200),
            {"tasks": ["style"]},
            'tasks: "style": only one value: "a" 200; a task needs at least 2',
        ),
        (
            pairs(style=["a", "b"] * 100),
            {"split": "style"},
            'split: "style": no row is a training row (train, training, learn); its values: '
            '"a" 100, "b" 100',
        ),
    ],
)
def test_bad_input_is_one_line(frame, options, message):
    if options.get("split"):
        frame = frame.assign(genre=["x", "y"] * 100)
    with pytest.raises(InputError) as error:
        guess_columns(frame, **options)
    assert str(error.value) == message


# === The spec ===


@pytest.mark.parametrize(
    ("column", "name"),
    [
        ("style", "style"),
        ("Art Style (main)", "art_style_main"),
        ("École", "ecole"),
        ("2nd maker", "task_2nd_maker"),
        ("__id", "id"),
        ("风格", "task"),
        ("x" * 60, "x" * 40),
    ],
)
def test_a_task_name_is_valid(column, name):
    assert task_name(column) == name
    Task.model_validate(
        {
            "name": name,
            "column": column,
            **{field: {"kind": "x"} for field in ("head", "loss", "schedule")},
        }
    )


def test_task_names_differ():
    assert task_name("Style", ["style", "style_2"]) == "style_3"
    assert task_name("y" * 60, ["y" * 40]) == "y" * 38 + "_2"


def test_the_spec_of_a_museums_export_can_be_read():
    text = write_spec(
        guess_columns(museum()), file="export.csv", name="mine", settings='images = "photos"'
    )
    spec = tomllib.loads(text)
    assert spec == {
        "name": "mine",
        "images": "photos",
        "table": {
            "file": "export.csv",
            "image": "image file",
            "test": 0.2,
            "group": "object number",
        },
        "task": [
            {"name": "maker", "column": "maker"},
            {"name": "classification", "column": "classification"},
            {"name": "medium", "column": "medium", "separator": ";"},
        ],
    }
    assert '# - "date": dates' in text
    assert max(len(line) for line in text.splitlines()) <= 120


def test_every_suggestion_of_the_spec_is_valid_when_it_is_switched_on():
    text = write_spec(guess_columns(kaggle()), file="classes.csv", task_settings="weight = 1.0")
    lines = [
        line[2:]
        if line.startswith(("# min_ex", "# rare", "# missing", "# several", "# map"))
        else line
        for line in text.splitlines()
    ]
    spec = tomllib.loads("\n".join(lines))
    assert spec["table"]["split"] == "subset"
    assert spec["task"][1] == {
        "name": "genre",
        "column": "genre",
        "weight": 1.0,
        "min_examples": 10,
        "rare": "exclude",
        "missing": ["", "unknown", "n/a", "na", "none", "-", "?", "null"],
        "several": "exclude",
        "map": {"another Realism": "Realism"},
    }


def test_a_table_of_lists_takes_their_first_value():
    cells = [["a", "b"], ["b", "c"], ["a"], ["c", "a"]] * 50
    frame = pairs(style=pd.Series(cells, dtype=object))
    guesses = guess_columns(frame)
    assert guesses.tasks[0].several_as == "first"
    assert guesses.tasks[0].labels == 200
    spec = tomllib.loads(write_spec(guesses, file="a.parquet"))
    assert spec["task"][0]["several"] == "first"


@pytest.mark.parametrize(
    "text", ['quote " and \\', "line\nbreak", "del \x7f", "tab\t", "é \u2028", "\x85", "plain"]
)
def test_quoted_texts_are_read_back_and_stand_on_one_line(text):
    quoted = quote_toml(text)
    assert tomllib.loads(f"x = {quoted}")["x"] == text
    assert len(quoted.splitlines()) == 1


def test_hostile_names_of_columns_and_values_stay_inside_their_lines():
    frame = pairs(**{'st"yle\n[evil]': ['a\n[evil]\nx = "1"', "b\\"] * 100})
    spec = tomllib.loads(write_spec(guess_columns(frame), file='a".csv'))
    assert spec["task"][0]["column"] == 'st"yle\n[evil]'
    assert set(spec) == {"name", "table", "task"}
