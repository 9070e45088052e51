"""The page of the web application, in a browser."""

import base64
import dataclasses

import pytest
from served import ask, plain, serving

pytestmark = pytest.mark.usefixtures("untimed")
from multitask.annexes.serve.app import build_app  # noqa: E402

SHOWN = '!document.getElementById("result").hidden'


def texts(browser, selector):
    return browser.run(f"[...document.querySelectorAll({selector!r})].map((e) => e.innerText)")


@pytest.mark.parametrize("width", [1400, 400])
@pytest.mark.parametrize("way", ["choose", "drop"])
def test_the_page_answers_an_image(known, data, port, browser, tmp_path, width, way):
    name = next(iter(data.train_labels["shade"]))
    file = data.folder / "images" / name
    browser.open(f"http://127.0.0.1:{port}/", width=width)
    if way == "choose":
        browser.choose("#file", file)
    else:
        browser.drop(file, x=width // 2, y=200)
    browser.wait(SHOWN)
    expected = ask(port, file.read_bytes(), path="/predict?similar=6")[2]
    assert texts(browser, "#tasks h2") == list(known.CLASSES)
    message = expected["tasks"].values()
    assert texts(browser, "#tasks .answer") == [one["answer"] for one in message]
    marks = browser.run(
        '[...document.querySelectorAll("#tasks article")].map((e) => e.matches(".uncertain"))'
    )
    assert marks == [one["uncertain"] for one in message]
    tops = [top for one in message for top in one["top"]]
    assert texts(browser, "#tasks .number") == [f"{100 * t['probability']:.1f} %" for t in tops]
    shares = browser.run(
        '[...document.querySelectorAll(".bar span")].map((e) => '
        "e.getBoundingClientRect().width / e.parentElement.clientWidth)"
    )
    assert len(shares) == len(tops)
    assert max(shares) <= 1
    near = texts(browser, ".images figcaption")
    assert [text.split()[-1] for text in near] == [
        f"{one['distance']:.3f}" for one in expected["similar"]
    ]
    assert near[0].split()[0] == known.CLASSES["shade"][data.train_labels["shade"][name]]
    loaded = "[...document.images].every((i) => i.complete && i.naturalWidth)"
    browser.wait(loaded)
    # Each view is another image, and by the keyboard too.
    own = browser.run("document.getElementById('image').src")
    assert own.startswith("blob:")
    assert texts(browser, "#views span") == ["off", *known.CLASSES]
    browser.run('document.querySelector("#views input").focus()')
    browser.press("ArrowRight")
    looked = browser.run("document.getElementById('image').src")
    assert looked.startswith("data:image/jpeg")
    assert browser.run("document.getElementById('image').alt").endswith("looked for shade")
    browser.wait(loaded)
    assert browser.run("document.documentElement.scrollWidth - window.innerWidth") <= 0
    assert browser.console_lines == []
    away = [a for a in browser.requests if not a.startswith(("data:", "blob:"))]
    assert {a.split("?")[0] for a in away} == {
        f"http://127.0.0.1:{port}/", f"http://127.0.0.1:{port}/predict",
    }  # fmt: skip


def test_the_page_says_what_is_wrong(port, browser, tmp_path):
    browser.open(f"http://127.0.0.1:{port}/")
    bad = tmp_path / "<b>bold.svg"
    bad.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    browser.choose("#file", bad)
    browser.wait('!document.getElementById("error").hidden')
    line = "<b>bold.svg: not a JPEG, PNG or WebP image: it is SVG or other XML"
    assert texts(browser, "#error") == [line]
    large = tmp_path / "large.png"
    large.write_bytes(plain((1, 2, 3)) + b"\0" * 20_000_000)
    browser.choose("#file", large)
    browser.wait('document.getElementById("error").innerText.startsWith("The file")')
    assert texts(browser, "#error") == ["The file is larger than 20 MB."]
    good = tmp_path / "good.png"
    good.write_bytes(plain((1, 2, 3)))
    browser.choose("#file", good)
    browser.wait(SHOWN)
    assert browser.run('document.getElementById("error").hidden')


def test_an_image_is_pasted(port, browser):
    browser.open(f"http://127.0.0.1:{port}/")
    data = base64.b64encode(plain((200, 30, 30))).decode()
    browser.run(f"""(() => {{
      const bytes = Uint8Array.from(atob("{data}"), (c) => c.charCodeAt(0));
      const clipboardData = new DataTransfer();
      clipboardData.items.add(new File([bytes], "image.png", {{ type: "image/png" }}));
      document.dispatchEvent(new ClipboardEvent("paste", {{ clipboardData }}));
    }})()""")
    browser.wait(SHOWN)
    assert len(texts(browser, "#tasks article")) == 3


def test_names_are_text_and_not_html(predictor, everything, browser, tmp_path):
    evil = "<img src=x onerror=alert(1)></script>"
    classes = {task: (evil,) * len(names) for task, names in predictor.classes.items()}
    spoiled = dataclasses.replace(predictor, classes=classes)
    with serving(build_app(spoiled, **everything | {"name": evil})) as port:
        browser.open(f"http://127.0.0.1:{port}/")
        file = tmp_path / "a.png"
        file.write_bytes(plain((200, 30, 30)))
        browser.choose("#file", file)
        browser.wait(SHOWN)
        assert evil in texts(browser, "header p")[0]
        assert evil in texts(browser, "#tasks td")
        assert browser.console_lines == []
