"""What a run trained on: what its workdir knows of it beside its settings."""

import os

import pandas as pd

from multitask.data.files import read_frame
from multitask.data.near_duplicates import describe_pairs
from multitask.data.records import (
    NEAR_DUPLICATES,
    default_records_dir,
    hash_cache,
    near_pairs,
)
from multitask.data.table import merge_tables
from multitask.files import replacing
from multitask.run import Run


def left_out(run: Run) -> pd.DataFrame | None:
    """What training left out, as `Table.left_out_frame` gives it; None before any training."""
    path = run.workdir / "left_out.csv"
    if not path.is_file():
        return None
    remedy = "the same `multitask train` writes it again"
    return read_frame(path, ("path", "reason"), remedy, dtype=str, keep_default_na=False)


def near_duplicate_pairs(run: Run) -> pd.DataFrame:
    """The pairs of `describe_pairs`, of all pictures of the CSVs; looked for once a run."""
    file = run.workdir / NEAR_DUPLICATES
    if not file.is_file():
        # Those of the CSVs: whichever side a later drawing left out.
        table = merge_tables(run.spec, run.data_dir)
        image_dir = run.data_dir / run.spec.images
        records = default_records_dir(run.data_dir)
        shared = records.is_dir() and os.access(records, os.W_OK)
        cache = hash_cache(run.spec, records if shared else run.workdir)
        pairs = near_pairs(table, image_dir, cache)
        with replacing(file) as temporary:
            describe_pairs(table, pairs).to_csv(temporary, index=False)
    return read_frame(file, ("first", "second"), "remove it, and it is made anew")
