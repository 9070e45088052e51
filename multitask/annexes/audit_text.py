"""Describe an audit in lines for the console."""

from collections.abc import Sequence

import pandas as pd

from multitask.annexes.audit import RARE, Audit, imbalance, rare_classes
from multitask.data.table import TEST, TRAIN
from multitask.errors import counted
from multitask.pages.audit_page import name_tasks
from multitask.spec import NO_TEST_SET

RARE_LISTED = 20


def summary(audit: Audit) -> list[str]:
    """Summarise an audit in lines, without its lists and findings."""
    lines = [*_image_lines(audit), *_class_lines(audit), *_leak_lines(audit), ""]
    lines.append(_pair_line(audit))
    if len(audit.mojibake):
        where = ", ".join(f"{n:,} {w}" for w, n in audit.mojibake["file"].value_counts().items())
        lines.append(f"Mojibake: {counted(len(audit.mojibake), 'path')} ({where})")
    if audit.unnamed:
        more = ", …" * (len(audit.unnamed) > 1)
        lines.append(f"Images that no CSV names: {len(audit.unnamed):,} ({audit.unnamed[0]}{more})")
    if audit.skipped:
        lines.append(f"Other files in {audit.image_dir}: {audit.skipped}")
    if audit.table.notes:
        lines += ["", "Notes", *(f"  {note}" for note in audit.table.notes)]
    return lines


def _image_lines(audit: Audit) -> list[str]:
    table = audit.table
    rows = table.findings.files.pivot(index="task", columns="split", values="rows")
    rows = rows.reindex(list(audit.spec.listing_tasks), columns=[TRAIN, TEST]).fillna(0).astype(int)
    sets = {name_tasks(tasks): count for tasks, count in audit.label_sets().items()}
    width = max(map(len, sets), default=0)
    return [
        f"{audit.spec.title or audit.spec.name}: {counted(len(table), 'image')} in the CSVs, "
        f"{len(table) - len(audit.unusable):,} readable in {audit.image_dir}",
        *_section("Rows of the CSVs", rows),
        "",
        "Images by the tasks that label them",
        *(f"  {name:<{width}}  {count:>9,}" for name, count in sets.items()),
        *_section(
            "Images and labels, one row per image, no test image in training", audit.counts()
        ),
        *_section("Of these, readable", audit.counts(readable=True)),
    ]


def _class_lines(audit: Audit) -> list[str]:
    classes = audit.classes
    lines = ["", "Largest to smallest class in the train files"]
    for task in audit.table.tasks:
        ends = imbalance(classes, task)
        if not ends:
            lines.append(f"  {task}: no training labels")
            continue
        (large, most), (small, least) = ends["largest"], ends["smallest"]
        lines.append(f"  {task}: {ends['ratio']:.1f} : 1 ({large} {most:,}, {small} {least:,})")
    rare = rare_classes(classes)
    lines += [
        f"  {row.task}: {row.name} has {counted(row.train, 'training label')}, fewer than {RARE}"
        for row in rare.head(RARE_LISTED).itertuples()
    ]
    if len(rare) > RARE_LISTED:
        lines.append(
            f"  and {counted(len(rare) - RARE_LISTED, 'more class', 'more classes')} with fewer "
            f"than {RARE}: audit.json has all under rare_classes"
        )
    return lines + [f"  {task}: {NO_TEST_SET}" for task in audit.table.without_test]


def _leak_lines(audit: Audit) -> Sequence[str]:
    if not audit.findings["leaks"]:
        return ()
    tasks = ", ".join(f"{task} {count:,}" for task, count in audit.leaks_by_test_task().items())
    title = (
        f"Leaks: {counted(audit.findings['leaks'], 'image is', 'images are')} test for one task "
        f"(by that task: {tasks}) and train for another. Training without them:"
    )
    return _section(title, audit.leak_cost())


def _pair_line(audit: Audit) -> str:
    splits = audit.pairs[["first_split", "second_split"]]
    between = int((splits["first_split"] != splits["second_split"]).sum())
    within = splits["first_split"][splits["first_split"] == splits["second_split"]]
    differing = int((audit.pairs["labels_differ"] != "").sum())
    return (
        f"Near-duplicates: {counted(len(audit.pairs), 'pair')}; {between:,} between train and test "
        f"({counted(len(audit.seen), 'test image')}), {int((within == TRAIN).sum()):,} within "
        "train, "
        f"{int((within == TEST).sum()):,} within test; "
        f"{counted(differing, 'pair has', 'pairs have')} different labels"
    )


def _section(title: str, counts: pd.DataFrame) -> list[str]:
    """A blank line, the title, and a table of counts."""
    counts = counts.rename_axis(index=None, columns=None).map("{:,}".format)
    return ["", title, *(f"  {line}" for line in counts.to_string().splitlines())]
