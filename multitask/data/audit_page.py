"""An audit as one page of HTML that needs nothing else: no network, no script, no other file."""

import base64
import html
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from multitask import figures
from multitask.data.audit import (
    RARE,
    Audit,
    empty_classes,
    imbalance,
    name_findings,
    name_tasks,
    pictures_in_both_files,
    rare_classes,
)
from multitask.data.files import read_reduced
from multitask.data.table import TRAIN, VAL
from multitask.files import scratch
from multitask.text import shorten

MAX_ROWS = 40  # of a list; audit.json has all of it
MAX_TASKS = 20  # whose classes are shown, about 100 kB a task
MAX_CLASSES = 100  # of a table of classes
MAX_TEXT = 200  # columns of a name or path
MAX_PAIRS = 60  # shown as pictures, about 15 kB a pair
MAX_PICTURES = 20  # of the contradictory ones
THUMBNAIL_PX = 180
JPEG_QUALITY = 80

CSS = """
:root { color-scheme: light dark; --paper: #fbfaf8; --card: #fff; --ink: #23262b; --muted: #667079;
  --line: #dcdad5; --accent: #9a3412; --accent-paper: #fdf0e7; --good: #166534; --link: #075985; }
@media (prefers-color-scheme: dark) { :root { --paper: #17191c; --card: #1f2226; --ink: #e4e3df;
  --muted: #9aa3ab; --line: #363a40; --accent: #fdba74; --accent-paper: #33241a; --good: #86efac;
  --link: #7dd3fc; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 68rem; background: var(--paper);
  color: var(--ink); font: 16px/1.55 system-ui, "Segoe UI", "Noto Sans", sans-serif; }
h1 { margin: 0 0 .25rem; font-size: 1.7rem; line-height: 1.25; }
h2 { margin: 3rem 0 .5rem; padding-top: .75rem; border-top: 1px solid var(--line);
  font-size: 1.25rem; }
h3 { margin: 1.75rem 0 .25rem; font-size: 1.02rem; }
p { margin: .5rem 0; max-width: 48rem; }
a { color: var(--link); }
.muted, .more { color: var(--muted); }
.verdict { margin: 1rem 0; padding: .7rem 1rem; max-width: none; border-left: 4px solid var(--good);
  background: var(--card); }
.verdict.found { border-color: var(--accent); background: var(--accent-paper); }
.count { color: var(--muted); font-weight: normal; font-variant-numeric: tabular-nums; }
.found .count, b.found { color: var(--accent); font-weight: 600; }
nav ul { columns: 17rem; margin: 1rem 0; padding: 0; list-style: none; }
nav li { display: flex; justify-content: space-between; gap: 1rem; padding: .1rem .75rem .1rem 0;
  break-inside: avoid; }
.wide { overflow-x: auto; }
table { margin: .75rem 0; border-collapse: collapse; font-size: .875rem; line-height: 1.4; }
th, td { padding: .22rem 1.1rem .22rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
th { color: var(--muted); font-weight: 600; white-space: nowrap; }
td { overflow-wrap: anywhere; }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
img.plot { display: block; max-width: 100%; height: auto; margin: 1rem 0; border-radius: 6px;
  background: #fff; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(25rem, 1fr)); gap: 1rem;
  margin: 1rem 0; }
.pair { padding: .75rem; border: 1px solid var(--line); border-radius: 8px; background: var(--card);
  break-inside: avoid; }
.pair > p { margin: 0 0 .5rem; font-size: .8125rem; }
.sides { display: grid; grid-template-columns: 1fr 1fr; gap: .75rem; }
figure { margin: 0; min-width: 0; }
figure img { display: block; max-width: 100%; height: auto; margin: 0 auto .4rem; }
figcaption { font-size: .75rem; line-height: 1.35; overflow-wrap: anywhere; }
@media (max-width: 30rem) { .pairs { grid-template-columns: 1fr; } }
@media print { :root { --paper: #fff; --card: #fff; --ink: #000; --muted: #444; --line: #bbb;
  --accent: #9a3412; --accent-paper: #fff; } body { max-width: none; padding: 0; font-size: 11pt; }
  .wide { overflow: visible; } h2, h3 { break-after: avoid; } tr { break-inside: avoid; } }
"""


@dataclass(frozen=True)
class _Section:
    """One section; `body` is HTML, the rest is text."""

    anchor: str
    title: str
    count: str
    body: str
    found: bool = False


def write_page(audit: Audit, path: Path) -> None:
    """Write the page; `path` should be a temporary name that is renamed when all is written."""
    counts, notes = audit.findings, audit.table.notes
    sections = [
        _Section(kind, title, f"{counts[kind]:,}", body(audit), found=True)
        for kind, title, body, _ in _FINDINGS
        if counts[kind]
    ]
    clean = [text for kind, _, _, text in _FINDINGS if not counts[kind]]
    if clean:
        sections.append(_Section("clean", "Looked for, not found", str(len(clean)), _list(clean)))
    size, sets = f"{len(audit.table):,} pictures", f"{len(audit.coverage())} sets"
    classes = f"{len(audit.classes):,} classes"
    sections += [
        _Section("rows", "Rows and splits", size, _rows(audit)),
        _Section("coverage", "Label coverage", sets, _coverage(audit)),
        _Section("classes", "Classes and imbalance", classes, _classes(audit)),
        _Section("similar", "Near-duplicates", f"{len(audit.pairs):,} pairs", _pairs(audit)),
        _Section("mojibake", "Mojibake", f"{len(audit.mojibake):,} paths", _mojibake(audit)),
    ]
    spelling = len(audit.table.findings.respelt) + len(audit.table.findings.ambiguous)
    if spelling:
        sections.append(_Section("spelling", "Spelling", f"{spelling:,} rows", _spelling(audit)))
    if audit.unnamed or audit.skipped:
        count = f"{len(audit.unnamed):,} images"
        sections.append(_Section("unnamed", "Files that no CSV names", count, _unnamed(audit)))
    if notes:
        sections.append(_Section("notes", "Notes of the reader", str(len(notes)), _list(notes)))
    path.write_text(_page(audit, sections), encoding="utf-8", errors="backslashreplace")


def _page(audit: Audit, sections: Sequence[_Section]) -> str:
    title = shorten(audit.spec.title or audit.spec.name, MAX_TEXT, spaces=False)
    found = name_findings(audit.findings)
    verdict = f"<b>Findings:</b> {html.escape(found)}." if found else "<b>No findings.</b>"
    readable = len(audit.table) - len(audit.unusable)
    contents = "".join(
        f'<li{_found(s.found)}><a href="#{s.anchor}">{html.escape(s.title)}</a> '
        f'<span class="count">{s.count}</span></li>'
        for s in sections
    )
    bodies = "".join(
        f'<section id="{s.anchor}"{_found(s.found)}> <h2>{html.escape(s.title)} '
        f'<span class="count">{s.count}</span></h2> {s.body}</section>\n'
        for s in sections
    )
    return f"""<!doctype html>
<html lang="en"> <head> <meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Audit of {html.escape(title)}</title> <style> {CSS} </style> </head>
<body>
<header> <h1>Audit of {html.escape(title)}</h1>
<p class="muted">{len(audit.table):,} pictures in the lists, {readable:,} of them readable in
{html.escape(str(audit.image_dir))}. Licence of the data: {_cut(audit.spec.licence, 500)}.</p>
<p class="verdict{" found" if found else ""}">{verdict}</p> </header>
<nav> <ul> {contents} </ul> </nav>
<main> {bodies} </main>
</body> </html>
"""


def _found(found: bool) -> str:
    return ' class="found"' if found else ""


# === Parts ===


def _text(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def _cut(text: object, limit: int = MAX_TEXT) -> str:
    return html.escape(shorten(str(text), limit, spaces=False))


def _list(texts: Sequence[str]) -> str:
    more = f'<p class="more">{len(texts) - MAX_ROWS:,} more are in audit.json.</p>'
    items = "".join(f"<li>{_cut(text, 4 * MAX_TEXT)}</li>" for text in texts[:MAX_ROWS])
    return f"<ul> {items} </ul>" + more * (len(texts) > MAX_ROWS)


def _table(columns: Sequence[str], rows: Iterable[Sequence]) -> str:
    """Cells are text or whole numbers; numbers stand to the right, with separators."""
    rows = [list(row) for row in rows]
    numeric = [
        bool(rows) and all(isinstance(row[c], int | np.integer) for row in rows)
        for c in range(len(columns))
    ]
    kinds = [' class="number"' if is_number else "" for is_number in numeric]

    def line(tag: str, cells: Iterable) -> str:
        return "".join(
            f"<{tag}{kind}>{f'{cell:,}' if kind else _cut(cell)}</{tag}>"
            for kind, cell in zip(kinds, cells, strict=True)
        )

    head = "".join(
        f"<th{kind}>{html.escape(name)}</th>" for kind, name in zip(kinds, columns, strict=True)
    )
    body = "".join(f"<tr>{line('td', row)}</tr>\n" for row in rows)
    return (
        f'<div class="wide"> <table> <thead> <tr>{head}</tr> </thead> '
        f"<tbody> {body} </tbody> </table> </div>"
    )


def _listed(
    columns: Sequence[str], rows: Sequence[Sequence], key: str, *, most: int | None = None
) -> str:
    """A table of the first rows, and how many there are where that is not all."""
    if not len(rows):
        return ""
    more, most = "", most or MAX_ROWS
    if len(rows) > most:
        more = f"The first {most} of {len(rows):,}; audit.json has all under “{key}”."
        more = f'<p class="more">{html.escape(more)}</p>'
    return _table(columns, rows[:most]) + more


def _plot(draw: Callable[[Path], object], alt: str) -> str:
    with scratch() as folder:
        path = folder / "plot.png"
        draw(path)
        data = base64.b64encode(path.read_bytes()).decode()
    return f'<img class="plot" src="data:image/png;base64,{data}" alt="{html.escape(alt)}">'


def _thumbnail(file: Path) -> str:
    """The picture as an <img> with its data inside, or a word where it cannot be read."""
    pixels = read_reduced(file, target_px=THUMBNAIL_PX)
    if pixels is None:
        return '<p class="muted">not readable</p>'
    source = figures.data_uri(pixels, side_px=THUMBNAIL_PX, quality=JPEG_QUALITY)
    return f'<img src="{source}" alt="">'


def _figure(audit: Audit, path: str, caption: str) -> str:
    thumbnail = _thumbnail(audit.image_dir / path)
    labels = _cut(", ".join(audit.labels_of(path).values()).replace("_", " "))
    return (
        f"<figure> {thumbnail} <figcaption> <b>{_cut(caption)}</b><br>"
        f'{_cut(path)}<br> <span class="muted">{labels}</span></figcaption> </figure>'
    )


def _splits(frame: pd.DataFrame) -> str:
    return _table(
        ["", *frame.columns], [[name, *map(int, row)] for name, *row in frame.itertuples()]
    )


# === Sections: what there is ===


def _rows(audit: Audit) -> str:
    files = audit.table.findings.files
    return (
        _table(list(files.columns), files.itertuples(index=False))
        + "<h3>Images and labels</h3>"
        + _text(
            "One row a picture. A picture that is val for any task is not trained on, and keeps "
            "only the labels that it is an exam for."
        )
        + _splits(audit.counts())
        + "<h3>Of these, with a file that can be read</h3>"
        + _splits(audit.counts(readable=True))
    )


def _coverage(audit: Audit) -> str:
    sets = {name_tasks(tasks): count for tasks, count in audit.coverage().items()}
    if not sets:
        return _text("No picture carries a label.")
    counts, names = list(sets.values()), list(sets)
    total = sum(counts)
    shares = [(name, count, f"{count / total:.1%}") for name, count in sets.items()]
    return _text("How many pictures stand in the lists of which tasks.") + (
        _plot(
            lambda path: figures.label_coverage(path, counts, names, title=audit.spec.name),
            "Bars: pictures by the set of labels that they carry",
        )
        + _listed(["labels", "pictures", "share"], shares, "coverage")
    )


def _classes(audit: Audit) -> str:
    classes, parts = audit.classes, []
    rare = rare_classes(classes)
    if len(rare):
        heading = f"<h3>Rare: fewer than {RARE} training labels</h3> "
        parts.append(heading + _class_table(rare, "rare_classes"))
    tasks = audit.table.tasks
    for task in tasks[:MAX_TASKS]:
        own = classes[classes["task"] == task].sort_values("listed", ascending=False, kind="stable")
        ends = imbalance(classes, task)
        ratio = f"{ends['ratio']:,.1f} : 1" if ends else "no training labels"

        def draw(path, own=own, task=task):
            figures.class_counts(path, own["listed"], own["name"].tolist(), task=task, rare=RARE)

        parts += [
            f"<h3>{html.escape(task)}: {len(own)} classes, largest to smallest {ratio}</h3>",
            _plot(draw, f"Bars: training labels of each class of {task}"),
            _class_table(own, "classes"),
        ]
    if len(tasks) > MAX_TASKS:
        more = len(tasks) - MAX_TASKS
        parts.append(_text(f"Not shown: {more:,} of {len(tasks):,} tasks; audit.json has all."))
    return _text(
        "listed: labels in the train file. train: left of them when no exam picture is trained on. "
        "readable: of these, with a file that can be read. val: labels in the exam."
    ) + "".join(parts)


def _class_table(classes: pd.DataFrame, key: str) -> str:
    columns = ["task", "label", "name", "listed", "train", "readable", "val"]
    rows = list(classes[columns].itertuples(index=False))
    return _listed(columns, rows, key, most=MAX_CLASSES)


def _mojibake(audit: Audit) -> str:
    frame = audit.mojibake
    if frame.empty:
        return _text("No path is garbled.")
    where = ", ".join(f"{n:,} {w}" for w, n in frame["file"].value_counts().items())
    return _text(
        "Paths whose UTF-8 was once read as Latin-1 (and then lower-cased). No finding in itself: "
        f"a file that lies under its garbled name is read all the same. Files: {where}."
    ) + _listed(["path", "was", "file"], list(frame.itertuples(index=False)), "mojibake")


def _spelling(audit: Audit) -> str:
    found = audit.table.findings
    columns = ["file", "line", "path"]
    read = found.respelt[[*columns, "file_path", "kind"]].itertuples(index=False)
    missing = found.ambiguous[[*columns, "candidates"]].itertuples(index=False)
    return (
        _text(
            "Rows whose path is spelt otherwise than its file. Where one file fits, it is read, "
            "and two spellings of it are one picture. Where several fit, none is taken."
        )
        + _listed([*columns, "is read", "difference"], list(read), "respelt")
        + _listed([*columns, "could be"], list(missing), "ambiguous")
    )


def _unnamed(audit: Audit) -> str:
    text = f"{len(audit.unnamed):,} image files in the folder stand in no CSV."
    if audit.skipped:
        text += f" Other files there: {audit.skipped}."
    return _text(text) + _listed(["path"], [[path] for path in audit.unnamed], "unnamed")


# === Sections: what was found ===


def _missing(audit: Audit) -> str:
    def folders(paths: Iterable[str]) -> pd.Series:
        return pd.Series([str(PurePosixPath(path).parent) for path in paths]).value_counts()

    missing = folders(audit.missing)
    listed = folders(audit.table.paths)
    rows = [(folder, count, int(listed[folder])) for folder, count in missing.items()]
    return (
        _text("Listed, and no such file. Put it in place, or take its rows out.")
        + _listed(["folder", "missing", "of"], rows, "missing")
        + "<h3>Files</h3>"
        + _listed(["path"], [[path] for path in audit.missing], "missing")
    )


def _unreadable(audit: Audit) -> str:
    rows = list(audit.unreadable.itertuples(index=False))
    return _text("The file is there and is no whole picture.") + _listed(
        ["path", "reason"], rows, "unreadable"
    )


def _unsafe(audit: Audit) -> str:
    frame = audit.table.findings.unsafe
    columns = ["file", "line", "path", "reason"]
    return _text("Training refuses such a list. The rows are left out of this audit.") + _listed(
        columns, [(a, b, repr(c), d) for a, b, c, d in frame[columns].itertuples(index=False)],
        "unsafe",
    )  # fmt: skip


def _unknown(audit: Audit) -> str:
    frame = audit.table.findings.unknown
    columns = ["file", "line", "value", "path"]
    return _text(
        "The class file has no such index or name. The label is left out; over the spec's share "
        f"max_unknown = {audit.spec.max_unknown:g} of a file, training refuses it."
    ) + _listed(columns, list(frame[columns].itertuples(index=False)), "unknown")


def _rows_of_pictures(audit: Audit, rows: pd.DataFrame, key: str) -> str:
    rows = audit.named(rows).assign(label=lambda frame: frame["label"].astype(str))
    columns = ["task", "path", "file", "line", "label", "name"]
    return _listed(columns, list(rows[columns].itertuples(index=False)), key)


def _contradictory(audit: Audit) -> str:
    frame = audit.table.findings.contradictory
    there = frame["path"][~frame["path"].isin(audit.unusable["path"])].unique()[:MAX_PICTURES]
    named = audit.named(frame)
    shown = "".join(
        f'<div class="pair"> {_figure(audit, path, _labels(named[named["path"] == path]))} </div>'
        for path in there
    )
    return (
        _text("Listed by one task with two labels; the picture loses both. Keep the right row.")
        + _rows_of_pictures(audit, frame, "contradictory")
        + (f'<div class="pairs"> {shown} </div>' if shown else "")
    )


def _labels(rows: pd.DataFrame) -> str:
    return ", ".join(
        dict.fromkeys(f"{row.task}: {row.name}" for row in rows.itertuples(index=False))
    )


def _repeated(audit: Audit) -> str:
    frame = audit.table.findings.repeated
    both = pictures_in_both_files(frame)
    return _text(
        "Listed more than once by one task, with the same label. One row counts. "
        f"{both:,} of the pictures stand in the train file and in the val file: they stay exams."
    ) + _rows_of_pictures(audit, frame, "repeated")


def _leaks(audit: Audit) -> str:
    frame = audit.table.findings.leaks
    exams = ", ".join(f"{task} {count:,}" for task, count in audit.leaks_by_exam().items())
    rows = [
        (path, ", ".join(rows["task"][rows["split"] == TRAIN]),
         ", ".join(rows["task"][rows["split"] == VAL]))
        for path, rows in frame.groupby("path", sort=True)
    ]  # fmt: skip
    return (
        _text(
            "A shared network that is trained on such a picture for one task has seen the exam of "
            f"the other. By the task whose val it is (some are val for several): {exams}. None "
            "is trained on, which costs:"
        )
        + _splits(audit.leak_cost().rename(index=lambda name: f"training, {name}"))
        + _listed(["path", "train for", "val for"], rows, "leaks")
    )


def _empty_classes(audit: Audit) -> str:
    return _text(
        "A class without a training label cannot be learnt, one without an exam label cannot be "
        "examined: macro-F1 leaves it out."
    ) + _class_table(empty_classes(audit.classes), "empty_classes")


def _near_duplicates(audit: Audit) -> str:
    across = audit.pairs["first_split"] != audit.pairs["second_split"]
    return _text(
        "Exam pictures that look like a training picture: copies, crops of one scan, versions of "
        "one motif. The network may know their answers by heart, so the exam comes out too good."
    ) + _cards(audit, audit.pairs[across], MAX_PAIRS)


def _pairs(audit: Audit) -> str:
    pairs, compared = audit.pairs, len(audit.table) - len(audit.unusable)
    if pairs.empty:
        return _text(f"No two of the {compared:,} readable pictures look alike.")
    across = pairs["first_split"] != pairs["second_split"]
    differ = pairs["labels_differ"] != ""
    rows = [
        (kind, int(chosen.sum()), int((chosen & differ).sum()))
        for kind, chosen in (
            ("across train and val", across),
            ("within train", ~across & (pairs["first_split"] == TRAIN)),
            ("within val", ~across & (pairs["first_split"] == VAL)),
        )
    ]
    room = max(0, MAX_PAIRS - int(across.sum()))
    return (
        _text(
            f"Pairs of the {compared:,} readable pictures that look alike. Where a task gives the "
            "two different labels, one of them may be wrong. Those within one split:"
        )
        + _table(["pairs", "how many", "with different labels"], rows)
        + _cards(audit, pairs[~across], room)
    )


def _cards(audit: Audit, pairs: pd.DataFrame, room: int) -> str:
    """Pairs side by side, the most alike first, as many as there is room for."""
    shown = pairs.sort_values("distance", kind="stable").head(room)
    cards = []
    for pair in shown.itertuples(index=False):
        sides = sorted(((pair.first_split, pair.first), (pair.second_split, pair.second)))
        differ = f", labels differ: {html.escape(pair.labels_differ)}" * bool(pair.labels_differ)
        pictures = " ".join(_figure(audit, path, split) for split, path in sides)
        cards.append(
            f'<div class="pair"> <p>distance {pair.distance} bits<b class="found">{differ}</b></p> '
            f'<div class="sides"> {pictures} </div> </div>'
        )
    more = ""
    if len(shown) < len(pairs):
        more = f"{len(shown):,} of {len(pairs):,} are shown; audit.json has all."
        more = f'<p class="more">{more}</p>'
    return f'<div class="pairs"> {" ".join(cards)} </div>{more}' if len(pairs) else ""


_FINDINGS = (  # kind, title, body, and what is said where there is none
    ("missing", "Missing files", _missing, "Every picture of the lists has its file."),
    ("unreadable", "Unreadable files", _unreadable, "Every file that is there can be read."),
    ("unsafe", "Unsafe paths", _unsafe, "Every path stays within the picture folder."),
    ("unknown", "Unknown labels", _unknown, "Every label is that of a class."),
    (
        "contradictory",
        "Contradictory labels",
        _contradictory,
        "No task lists a picture with two labels.",
    ),
    ("repeated", "Repeated rows", _repeated, "No task lists a picture twice, alike."),
    (
        "leaks",
        "Leaks between tasks",
        _leaks,
        "No picture is train for one task and val for another.",
    ),
    (
        "near_duplicates",
        "Near-duplicates across train and val",
        _near_duplicates,
        "No readable val picture looks like one of train.",
    ),
    (
        "empty_classes",
        "Empty classes",
        _empty_classes,
        "Every class has a label in train and one in val.",
    ),
)
