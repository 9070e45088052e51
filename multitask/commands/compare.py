"""Compare runs that were evaluated on the same test set, with tests of the differences.

  multitask compare runs/first runs/second …

Prints every metric of each run and its difference from the first run's, with McNemar's exact test
for top-1, and a 95 % interval from 1,000 bootstrapped test sets for accuracies and F1. Writes the
same to --out as comparison.csv and comparison.html, one self-contained page, which also lists the
settings in which the runs differ. It reads only the files that `evaluate` wrote to results/.
"""

import os
from pathlib import Path

from absl import flags

from multitask.files import check_writable
from multitask.run import open_run
from multitask.spec import InputError


def define_flags(values: flags.FlagValues) -> None:
    """Define the flags of `compare`."""
    flags.DEFINE_string(
        "out",
        None,
        "folder for comparison.csv and comparison.html (default: comparison/ next to the first "
        "run)",
        flag_values=values,
    )


def main(values: flags.FlagValues, left: list[str]) -> None:
    """Compare the named runs."""
    if len(left) < 2:
        raise InputError(
            f"multitask compare: name two runs or more, e.g. runs/first runs/second; {len(left)} "
            f"given{'' if not left else f' ({left[0]})'}"
        )
    places = [Path(name).resolve() for name in left]
    for name, place in zip(left, places, strict=True):
        if places.count(place) > 1:
            raise InputError(f"multitask compare: {name}: the same run is named twice")
    default = os.path.normpath(os.path.join(left[0], os.pardir, "comparison"))
    out = Path(values.out or default)
    check_writable(out, field="out")
    runs = []
    for name in left:
        runs.append(open_run(Path(name), allow_outside=True))  # its paths are not used

    from multitask.annexes.compare.comparison import compare, table_lines, write_comparison
    from multitask.annexes.compare.results import read_results

    comparison = compare([read_results(run) for run in runs])
    write_comparison(comparison, out)
    print("\n".join(table_lines(comparison)))
    print(f"\nWritten: {out / 'comparison.html'}, {out / 'comparison.csv'}")
