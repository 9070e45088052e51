"""Set runs that were evaluated on the same exam side by side, with what is chance and what is not.

  multitask compare runs/first runs/second …

Prints every figure of each run and its difference to the first run's: with McNemar's exact test
for top-1, and a 95 % interval from 1,000 bootstrapped exams for accuracies and F1. Writes to --out
the same as comparison.csv and comparison.html, one page that needs nothing else, which also lists
the settings in which the runs differ. It reads what `evaluate` wrote in results/ and no model."""

import os
from pathlib import Path

from absl import flags

from multitask.files import check_writable
from multitask.run import open_run
from multitask.spec import InputError


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "out",
        None,
        "folder for comparison.csv and comparison.html; without it, comparison/ beside the first "
        "run",
        flag_values=values,
    )


def main(values: flags.FlagValues, left: list[str]) -> None:
    if len(left) < 2:
        raise InputError(
            f"multitask compare: name two runs or more, e.g. runs/first runs/second; {len(left)} "
            f"given{'' if not left else f' ({left[0]})'}"
        )
    places = [Path(name).resolve() for name in left]
    for name, place in zip(left, places, strict=True):
        if places.count(place) > 1:
            raise InputError(f"multitask compare: {name}: the same run is named twice")
    beside = os.path.normpath(os.path.join(left[0], os.pardir, "comparison"))
    out = Path(values.out or beside)
    check_writable(out, flag="--out")
    runs = []
    for name in left:
        try:
            runs.append(open_run(Path(name), allow_outside=True))  # no path of it is read
        except InputError as error:
            raise InputError(str(error).removeprefix("--workdir: ")) from None

    from multitask.evaluation import comparison

    found = comparison.compare([comparison.read_results(run) for run in runs])
    comparison.write_comparison(found, out)
    print("\n".join(comparison.table_lines(found)))
    print(f"\nWritten: {out / 'comparison.html'}, {out / 'comparison.csv'}")
