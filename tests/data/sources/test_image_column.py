"""Which column holds the images, and the error if none does."""

import os

import pytest

from multitask.data.sources import open_source
from multitask.errors import InputError


@pytest.fixture
def table(tmp_path):
    """A function: (text of a CSV, names of image files below photos/) -> its path."""

    def make(text, files=()):
        (tmp_path / "photos").mkdir(exist_ok=True)
        for name in files:
            (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "photos" / name).write_bytes(b"x")
        (tmp_path / "t.csv").write_text(text)
        return tmp_path / "t.csv"

    return make


def refusal(place, **options):
    with pytest.raises(InputError) as caught:
        open_source(place, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(f"{place.parent}/", "").replace(str(place.parent), ".")


def test_values_that_are_files_count_more_than_names(table, tmp_path):
    place = table("image,scan\nold_a.jpg,a\nold_b.jpg,b\n", ["a", "b"])
    source = open_source(place, images=tmp_path / "photos")
    assert source.image == "scan"
    assert source.images == tmp_path / "photos"
    assert source.notes == ("images: column 'scan', because its values are files",)


def test_files_next_to_the_table(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "1").write_bytes(b"")
    (tmp_path / "t.csv").write_text("id,thing\n7,x/1\n8,x/2\n9,x/3\n")
    assert open_source(tmp_path / "t.csv").image == "thing"


def test_names_where_no_file_is_there(table):
    source = open_source(table("id,label,pic\n1,x,A.JPG\n2,y,b.tiff\n3,z,c/d.webp\n"))
    assert source.image == "pic"
    assert source.notes == ("images: column 'pic', because its values are names of images",)


def test_the_usual_name_decides_between_two(table):
    assert open_source(table("thumb,file_name\na.jpg,b.jpg\n")).image == "file_name"


def test_two_equally_likely_columns_are_refused(table):
    place = table("front,back,style\na.jpg,b.jpg,x\n")
    assert refusal(place) == (
        "image_column: t.csv: several columns hold names of images (front, back); choose one"
    )
    assert open_source(place, image_column="back").image == "back"
    place = table("front,back,style\na.jpg,b.jpg,x\n", ["a.jpg", "b.jpg"])
    assert refusal(place, images=place.parent / "photos") == (
        "image_column: t.csv: several columns hold files (front, back); choose one"
    )


def test_a_column_that_is_not_there(table):
    assert refusal(table("image,style\na.jpg,x\n"), image_column="imagge") == (
        'image_column: t.csv: no column "imagge". Expected one of: image, style. '
        'Did you mean "image"?'
    )


@pytest.mark.parametrize("options", [{}, {"image_column": "image"}])
def test_addresses_are_refused_with_what_to_do(table, options):
    place = table("image,style\nhttps://a.org/1.jpg,x\nHTTP://a.org/2.jpg,y\n")
    assert refusal(place, **options) == (
        "t.csv: column 'image' holds URLs ('https://a.org/1.jpg'), not files; download the "
        "images first, and write each file's path into a column"
    )


@pytest.mark.parametrize("start", ["C:\\\\", "d:/", "\\\\\\\\nas\\\\"])
def test_absolute_paths_of_windows_are_refused(table, start):
    line = refusal(table(f"image,style\n{start}a.jpg,x\n{start}b.jpg,y\n"))
    assert line.startswith("t.csv: column 'image' holds absolute paths of Windows (")
    assert line.endswith("; replace them by paths below ., the folder of the images")


def test_addresses_and_files_in_one_table(table, tmp_path):
    place = table("url,image\nhttps://a.org/1.jpg,a.jpg\n", ["a.jpg"])
    assert open_source(place, images=tmp_path / "photos").image == "image"
    assert open_source(place).image == "image"


def test_no_images_says_what_was_looked_for(table):
    start = (
        "t.csv: no column of images: no column holds files below ., or names such as a.jpg. "
        "Columns: "
    )
    end = " Name the column (image_column), or the folder of the images (images)"
    assert refusal(table("id,style\n1,x\n2,y\n")) == f"{start}id, style.{end}"
    assert refusal(table("id,image\n1,x\n2,y\n")) == (
        f"{start}id, image. Column 'image' holds 'x'.{end}"
    )
    assert refusal(table("id,Images\n1,x\n2,y\n")) == (
        f"{start}id, Images. Column 'Images' holds 'x'.{end}"
    )
    assert refusal(table("id,scan\n1,x.jpg\n2,y\n")) == (
        f"{start}id, scan. 50% of the values of 'scan' are such names.{end}"
    )


def test_values_without_their_suffix(table, tmp_path):
    place = table("id,style\n17,x\n18,y\n", ["18.png"])
    assert refusal(place, images=tmp_path / "photos") == (
        "t.csv: no column of images: no column holds files below photos, or names such as a.jpg. "
        "Columns: id, style. With .png added, '18' of column 'id' is a file; add the suffix in the "
        "table"
    )


def test_absolute_paths_below_the_folder_become_relative(table, tmp_path):
    photos = tmp_path / "photos"
    place = table(f"image\n{photos}/a.jpg\n{photos}/b/c.jpg\n/elsewhere/d.jpg\n", ["a.jpg"])
    source = open_source(place, images=photos)
    assert source.frame["image"].tolist() == ["a.jpg", "b/c.jpg", "/elsewhere/d.jpg"]
    assert f"2 absolute paths below {photos} made relative to it" in source.notes


def test_absolute_paths_of_another_folder_are_refused_with_that_folder(table, tmp_path):
    place = table("image\n/data/museum/a.jpg\n/data/museum/b/c.jpg\n", ["a.jpg"])
    assert refusal(place, images=tmp_path / "photos") == (
        "images: t.csv: column 'image' holds absolute paths, all below /data/museum and none below "
        "photos; name the folder that they are in"
    )


def test_paths_out_of_the_folder_are_not_looked_at(table, tmp_path, monkeypatch):
    seen = []
    isfile = os.path.isfile
    monkeypatch.setattr(os.path, "isfile", lambda path: seen.append(str(path)) or isfile(path))
    open_source(table("image\n../t.csv\n/etc/passwd\na.jpg\nb.jpg\n" + "c.jpg\n" * 30),
                images=tmp_path / "photos", image_column="image")  # fmt: skip
    assert not [path for path in seen if ".." in path or "passwd" in path]


def test_a_folder_of_images_that_is_not_there(table, tmp_path):
    assert refusal(table("image\na.jpg\n"), images=tmp_path / "fotos") == (
        "images: fotos: there is no such folder of images"
    )


def test_values_that_no_file_system_has_as_names(table):
    rows = "".join(
        f'{{"image": {name}}}\n' for name in ('"\\u0000.jpg"', '"\\ud800.jpg"', '"a.jpg"')
    )
    place = table("")
    (place.parent / "t.jsonl").write_text(rows)
    assert open_source(place.parent / "t.jsonl").image == "image"


def test_a_column_with_few_values_is_looked_at_as_a_whole(table):
    """9,999 rows; the only image is in a row that a regular sample skips."""
    lines = [f"{i}," for i in range(9_999)]
    lines[7_001] += "a.jpg"
    assert open_source(table("id,scan\n" + "\n".join(lines) + "\n")).image == "scan"
