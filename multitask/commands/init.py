"""Look at a collection and write its spec: which column holds the images, and which are tasks.

  multitask init catalogue.csv --images=photos --out=mine.toml
  multitask train --spec=mine.toml --workdir=runs/mine

The collection is a table (CSV, TSV, JSON Lines, Parquet, Excel), a data set of the Hugging Face Hub
on disk, a TFDS data set (tfds:NAME, or its folder), Kaggle's WikiArt, or class folders. Nothing is
downloaded. The spec is TOML, with the reason of each guess in a comment. Correct a guess there, or
with a flag. `multitask train --data=catalogue.csv` guesses and trains in one command.
"""

from pathlib import Path

from absl import flags

from multitask.commands.spec_flags import define_collection_flags, draft_of_flags
from multitask.spec import InputError


def define_flags(values: flags.FlagValues) -> None:
    """Define the flags of `init`."""
    define_collection_flags(values)
    flags.DEFINE_list("tasks", None, "the columns to learn; for class folders with several levels: "
                      "the names of the levels, from the top", flag_values=values)  # fmt: skip
    flags.DEFINE_string("out", None, "the spec's file to write, e.g. mine.toml", flag_values=values)
    flags.DEFINE_boolean("overwrite", False, "replace the file if it exists", flag_values=values)


def main(values: flags.FlagValues, left: list[str]) -> None:
    """Write the spec of a collection."""
    if len(left) != 1:
        raise InputError("multitask init: name one table or folder; --help shows how")
    if not values.out:
        raise InputError("multitask init: --out is needed; --help lists the flags")
    from multitask.data.draft import check_out

    out = Path(values.out)
    check_out(out, overwrite=values.overwrite)
    draft = draft_of_flags(values, left[0], spec_dir=out.parent)
    draft.write(out)
    print("\n".join(draft.summary()))
    here = draft.data_dir == out.parent.absolute()
    where = "" if here else f" --data_dir={draft.data_dir}"
    where += " --allow_outside" if draft.leaves else ""
    print(
        f"\nWritten: {out}. Look at it, then:\n"
        f"  multitask audit --spec={out}{where} --out=audit\n"
        f"  multitask train --spec={out}{where} --workdir=runs/{draft.spec().name}"
    )
