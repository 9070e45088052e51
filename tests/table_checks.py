"""What tests read of a table: its rows by path, its notes, and that its splits are disjoint."""

from multitask.data.table import TEST, TRAIN, VALIDATION


def by_path(table):
    """{path: (split, {task: label} of the labels that are there)}."""
    return {
        path: (split, {t: int(v) for t, v in zip(table.tasks, row, strict=True) if v != -1})
        for path, split, row in zip(table.paths, table.splits, table.labels, strict=True)
    }


def notes_with(table, word):
    return [note for note in table.notes if word in note]


def assert_disjoint_and_whole(table):
    rows = [set(table.rows(split).tolist()) for split in (TRAIN, VALIDATION, TEST)]
    assert sum(len(r) for r in rows) == len(set().union(*rows)) == len(table)
    assert len(set(table.paths)) == len(table)
