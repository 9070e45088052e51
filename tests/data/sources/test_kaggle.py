"""Kaggle's WikiArt: rows of its two files, with values checked by hand."""

import pytest

from multitask.data.sources import open_source
from multitask.errors import InputError

HEADER = "filename,artist,genre,description,phash,width,height,genre_count,subset\n"
CLASSES = HEADER + (
    "Cubism/a_x-1.jpg,ann a,['Cubism'],x-1,bebbeb01,1382,1746,1,train\n"
    "Dots/b_y.jpg,bo b,\"['Dots', 'Naïve Art']\",y,d7d0,1382,945,2,test\n"
    "Dots/c_z.jpg,c c,[],z,c3,10,20,0,uncertain artist\n"
)
NUMBERS = "file,artist,genre,style\nCubism/a.jpg,22,133,161\nDots/b.jpg,0,129,150\n"


def write(folder, **texts):
    for name, text in texts.items():
        (folder / f"{name}.csv").write_text(text)
    return folder


def rows(source):
    return list(source.frame.itertuples(index=False, name=None))


@pytest.mark.parametrize("as_file", [False, True])
def test_classes_csv(tmp_path, as_file):
    write(tmp_path, classes=CLASSES, wclasses=NUMBERS)
    place = tmp_path / "classes.csv" if as_file else tmp_path
    source = open_source(place)
    assert (source.kind, source.place, source.image) == ("kaggle", place, "filename")
    assert (source.images, source.split, source.embedded) == (tmp_path, "subset", False)
    assert list(source.frame) == [
        *("filename", "artist", "style", "description", "phash"),
        *("width", "height", "style_count", "subset"),
    ]
    assert rows(source) == [
        ("Cubism/a_x-1.jpg", "ann a", "Cubism", "x-1", "bebbeb01", "1382", "1746", "1", "train"),
        ("Dots/b_y.jpg", "bo b", ["Dots", "Naïve Art"], "y", "d7d0", "1382", "945", "2", "test"),
        ("Dots/c_z.jpg", None, None, "z", "c3", "10", "20", "0", None),
    ]
    assert source.rows.tolist() == ["line 2", "line 3", "line 4"]
    assert source.notes == (
        "Kaggle's WikiArt, classes.csv",
        "its column genre holds lists of styles and is read as style; rows with several: 1",
        'rows of the subset "uncertain artist", which have neither artist nor split: 1',
    )


def test_wclasses_csv_alone(tmp_path):
    write(tmp_path, wclasses=NUMBERS)
    source = open_source(tmp_path)
    assert (source.kind, source.image, source.split) == ("kaggle", "file", None)
    assert list(source.frame) == ["file", "artist", "genre", "style"]
    assert rows(source) == [
        ("Cubism/a.jpg", "22", "133", "Cubism"),
        ("Dots/b.jpg", None, "129", "Dots"),
    ]
    assert source.notes == (
        "Kaggle's WikiArt, wclasses.csv",
        "rows of artist 0 (all other artists), which have no label: 1",
        "style is read from the folders, which agree with the numbers",
        "the file has no names for the numbers of artist, genre",
    )


def test_wclasses_csv_whose_folders_disagree(tmp_path):
    write(tmp_path, wclasses=NUMBERS + "Dots/c.jpg,1,129,161\n")
    source = open_source(tmp_path / "wclasses.csv")
    assert source.frame["style"].tolist() == ["161", "150", "161"]
    assert source.notes[-2:] == (
        "style is read from the numbers, which do not agree with the folders",
        "the file has no names for the numbers of artist, genre, style",
    )


def test_the_images_may_be_elsewhere(tmp_path):
    (tmp_path / "jpgs").mkdir()
    write(tmp_path, classes=CLASSES)
    assert open_source(tmp_path, images=tmp_path / "jpgs").images == tmp_path / "jpgs"


def test_another_table_of_that_name(tmp_path):
    write(tmp_path, classes="filename,artist\na.jpg,ann\n")
    source = open_source(tmp_path / "classes.csv")
    assert source.kind == "table"


@pytest.mark.parametrize("cell", ["Cubism", "[1]", "['a'", "['a'] + ['b']", "[" * 900, "{}"])
def test_a_cell_that_is_not_a_list(tmp_path, cell):
    line = f'Cubism/a.jpg,ann,"{cell}",x,y,1,2,1,train\n'
    write(tmp_path, classes=HEADER + line)
    with pytest.raises(InputError) as caught:
        open_source(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/classes.csv: line 2: {cell[:40]!r}: expected a list such as ['Cubism']"
    )
