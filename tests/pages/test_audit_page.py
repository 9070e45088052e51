"""The page is whole in itself, is HTML that parses, and takes no markup from the data."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from multitask.annexes.audit import audit_data_set
from multitask.pages import audit_page

VOID = {"meta", "img", "br"}
# What could load something, or run.
REFERENCES = {"src", "href", "srcset", "action", "data", "poster", "background", "formaction"}


class Page(HTMLParser):
    """Checks that tags nest, and keeps what the tests ask for."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.references, self.ids, self.text = [], [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), name
            if name in REFERENCES:
                self.references.append(value)
            if name == "id":
                self.ids.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def page_of(spec, data, path):
    audit = audit_data_set(spec, data, progress=False)
    audit.write_page(path)
    return audit, Page(path.read_text(encoding="utf-8"))


def check_self_contained(page):
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
    for value in page.references:
        assert value.startswith(("#", "data:image/png;base64,", "data:image/jpeg;base64,"))
    anchors = [value[1:] for value in page.references if value.startswith("#")]
    assert sorted(anchors) == sorted(page.ids)
    assert len(set(page.ids)) == len(page.ids)


def add(data, name, *lines):
    with (data / f"wikiart_csv/{name}.csv").open("a", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)


def paint_detailed(*files):
    """One image, as several files: the usual ones are too smooth to be compared."""
    blocks = np.random.default_rng(7).integers(0, 256, (12, 16, 3)).astype(np.uint8)
    for file in files:
        Image.fromarray(blocks).resize((40, 30)).save(file, quality=90)


def test_clean_data(tiny_data, tiny_spec, tmp_path):
    _, page = page_of(tiny_spec(tasks=("style",)), tiny_data(), tmp_path / "audit.html")
    check_self_contained(page)
    assert "No findings." in page.text
    assert "Every file that exists can be read." in page.text
    assert page.tags.count("img") == 2  # sets of labels, and one task


def test_every_kind_of_finding_is_on_the_page(tiny_data, tiny_spec, tmp_path):
    data = tiny_data(classes={"artist": ("Ann_Alder", "Bo_Birch", "Cy_Cedar")})
    paint_detailed(data / "wikiart/Dots/someone_val-00.jpg", data / "wikiart/Dots/copy.jpg")
    (data / "wikiart/broken.jpg").write_bytes(b"")
    add(data, "style_train", "../x.jpg,0", "gone.jpg,1", "broken.jpg,1", "Dots/copy.jpg,0")
    add(data, "style_train", "Dots/someone_train-00.jpg,0", "Dots/someone_train-03.jpg,2", "u,77")
    add(data, "genre_val", "Lines/someone_train-10.jpg,0")
    add(data, "style_train", "jardã\xadn.jpg,0")
    audit, page = page_of(tiny_spec(), data, tmp_path / "audit.html")
    check_self_contained(page)
    assert all(audit.findings.values()), audit.findings
    assert set(audit.findings) <= set(page.ids)
    for text in (
        "'../x.jpg'", "gone.jpg", "broken.jpg", "77", "Cy_Cedar", "jardín.jpg",
        "Lines/someone_train-10.jpg", "style: Dots, style: Waves", "distance",
    ):  # fmt: skip
        assert text in page.text, text
    assert "Checked, no findings" not in page.text
    # Both images of the pair and the contradictory one, 40 x 30 px as they are.
    images = [
        Image.open(io.BytesIO(base64.b64decode(value.split(",")[1])))
        for value in page.references
        if value.startswith("data:image/jpeg")
    ]
    assert [image.size for image in images] == [(40, 30)] * 3


@pytest.mark.parametrize("name", ['<script>alert("1")</script>.jpg', "a&b'\"<img src=x>.jpg"])
def test_markup_in_the_data_stays_text(tiny_data, tiny_spec, tmp_path, write_image, name):
    """In a path, a class, a label's text and the title."""
    nasty = name.replace("/", "_")
    data = tiny_data(classes={"style": ("<b>bold", "</table>", "&amp;")})
    quoted = '"{}"'.format(nasty.replace('"', '""'))
    add(data, "style_train", f"{quoted},0", f"{quoted},1", f"gone-{quoted[1:-1]},0")
    add(data, "style_train", f'x.jpg,"{nasty.replace(chr(34), chr(34) * 2)}"')
    add(data, "genre_val", f"{quoted},1")
    write_image(data / "wikiart" / nasty)
    spec = tiny_spec(title="</title><script>x</script>", licence="<i>none")
    audit, page = page_of(spec, data, tmp_path / "audit.html")
    check_self_contained(page)
    assert {"i", "script"}.isdisjoint(page.tags)
    assert audit.findings["contradictory"] == 1
    assert audit.findings["unknown"] == 1
    assert nasty in page.text
    assert "<b>bold" in page.text
    assert "&amp;" in page.text
    assert "</title><script>x</script>" in page.text


def test_long_lists_are_cut_and_say_so(tiny_data, tiny_spec, tmp_path, monkeypatch):
    monkeypatch.setattr(audit_page, "MAX_ROWS", 3)
    monkeypatch.setattr(audit_page, "MAX_PAIRS", 2)
    data = tiny_data()
    add(data, "style_train", *(f"gone-{i}.jpg,0" for i in range(5)))
    names = [f"copy-{i}.jpg" for i in range(5)]  # ten pairs within train
    paint_detailed(*(data / "wikiart" / name for name in names))
    add(data, "style_train", *(f"{name},0" for name in names))
    audit, page = page_of(tiny_spec(), data, tmp_path / "audit.html")
    check_self_contained(page)
    assert re.search("The first 3 of 5; audit.json has all under “missing”.", page.text)
    assert "gone-2.jpg" in page.text
    assert "gone-3.jpg" not in page.text
    assert len(audit.pairs) == 10
    assert "2 of 10 are shown" in page.text
    assert sum(value.startswith("data:image/jpeg") for value in page.references) == 4


def test_many_classes_and_long_names_do_not_make_a_long_page(
    tiny_data, tiny_spec, tmp_path, monkeypatch
):
    monkeypatch.setattr(audit_page, "MAX_TASKS", 2)
    count = 3000
    names = {task: [f"{task}<&> {'ink ' * 100}{i}" for i in range(count)]
             for task in ("artist", "style", "genre")}  # fmt: skip
    rows = {f"{task}_train": [(f"gone/{'x' * 200}{i}.jpg", i) for i in range(0, count, 2)]
            for task in names}  # fmt: skip
    data = tiny_data(rows=rows, classes=names, images=False)
    (data / "wikiart").mkdir()
    audit, page = page_of(tiny_spec(), data, tmp_path / "audit.html")
    check_self_contained(page)
    assert (tmp_path / "audit.html").stat().st_size < 1.5e6
    assert all(len(own) == count for own in audit.to_json()["classes"].values())
    assert "The first 100 of 3,000; audit.json has all under “classes”." in page.text
    assert "Not shown: 1 of 3 tasks; audit.json has all." in page.text
    assert page.tags.count("img") == 3  # sets of labels, and two tasks
    assert page.tags.count("tr") < 700


def test_thumbnails_are_small(tiny_data, tiny_spec, tmp_path, write_image):
    sizes = {"a.png": (900, 300), "b.png": (4, 720), "c.png": (20, 10), "gone.png": (20, 10)}
    data = tiny_data()
    for name, (width, height) in sizes.items():
        write_image(data / "wikiart" / name, width=width, height=height)
        add(data, "style_train", f"{name},0", f"{name},1")  # contradictory, so that it is shown
    audit = audit_data_set(tiny_spec(), data, progress=False)
    (data / "wikiart/gone.png").unlink()
    audit.write_page(tmp_path / "audit.html")
    page = Page((tmp_path / "audit.html").read_text(encoding="utf-8"))
    shown = []
    for value in page.references:
        if value.startswith("data:image/jpeg"):
            with Image.open(io.BytesIO(base64.b64decode(value.split(",")[1]))) as image:
                assert image.format == "JPEG"
                shown.append(image.size)
    assert shown == [(180, 60), (1, 180), (20, 10)]
    assert page.text.count("not readable") == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1100, 400])
def test_a_browser_shows_the_page(tiny_data, tiny_spec, tmp_path, chromium, width, scheme):
    """No request, no complaint, nothing wider than the window."""
    if chromium.PATH is None:
        pytest.skip("needs Chromium")
    data = tiny_data()
    paint_detailed(data / "wikiart/Dots/someone_val-00.jpg", data / "wikiart/Dots/copy.jpg")
    add(data, "style_train", "Dots/copy.jpg,0", f"gone/{'x' * 180}.jpg,1")
    page_of(tiny_spec(), data, tmp_path / "audit.html")
    browser = chromium.Chromium(tmp_path / "profile")
    try:
        address = (tmp_path / "audit.html").as_uri()
        browser.open(address, width=width, scheme=scheme)
        assert browser.console_lines == []
        assert [url for url in browser.requests if not url.startswith("data:")] == [address]
        assert browser.run("document.documentElement.scrollWidth <= innerWidth")
        assert browser.run("[...document.images].every(image => image.naturalWidth > 0)")
    finally:
        browser.close()
