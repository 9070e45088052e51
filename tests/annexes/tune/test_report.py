"""The table at the end of a search."""

import numpy as np
import pandas as pd
from specs import spec_of, task_of

from multitask.annexes.tune.report import SHOWN, trials_table
from multitask.annexes.tune.space import search_space


def test_the_table():
    """Best first, the spec before them; pruned trials and constant rows are excluded."""
    spec = spec_of(task_of("one", head={"kind": "linear"}))
    space = search_space(spec, ["rates", "losses"])
    count = SHOWN + 4
    frame = pd.DataFrame(
        {
            "trial": range(count),
            "state": ["complete"] * (count - 1) + ["pruned"],
            "score": [0.5, *np.linspace(0.41, 0.62, count - 2), 0.9],
            "epoch": pd.array([2] * count, "Int64"),
            "epochs": 3,
            "seconds": 1.25,
            "one.schedule.rate": np.linspace(1, 2, count),
            "one.loss.gamma": 2.0,
            "one.class_weight_exponent": 1.0,
        }
    )
    lines = trials_table(frame, space, "macro_f1")
    cells = [line.split("  ") for line in lines]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in cells]
    shown = range(count - 2, count - 2 - SHOWN, -1)
    assert cells[0] == ["spec", *(f"trial {n}" for n in shown)]
    scores = frame["score"]
    assert cells[1] == ["validation macro-F1", "0.500", *(f"{scores[n]:.3f}" for n in shown)]
    assert cells[2][1:] == [f"{scores[n] - 0.5:+.3f}" for n in shown]
    assert [row[0] for row in cells[3:]] == ["in epoch", "seconds", "one.schedule.rate"]
    assert cells[5][1:3] == ["1", f"{frame['one.schedule.rate'][shown[0]]:g}"]
    assert len({len(line) for line in lines}) == 1
