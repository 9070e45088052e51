"""Search better numbers for the heads of a spec, on features that the trunk gave once.

  multitask tune --spec=wikiart --data_dir=DIR --workdir=runs/tuning
  multitask train --spec=runs/tuning/tune/best.toml --data_dir=DIR --workdir=runs/tuned

A trial is the phase heads. Trial 0 is the spec as it is; the others change, for each task:
  heads    units, residual_units, se_units: a quarter to twice the spec's (in a list all by one
           factor); each dropout: 0 to 0.6
  rates    the learning rate: a tenth to ten times the spec's; period, decay, ... stay
  losses   the focal loss' gamma: 0 to 4; class_weight_exponent: 0 to 1
  weights  the task's weight: a quarter to four times the spec's. The heads share nothing that
           learns, so a trial hardly feels it, and what is found is chance: not searched unless
           it is asked for (--search=all)
What the kind of head or loss does not have is not searched. A trial that is below the median of
the others is stopped early. The same command again goes on where it was stopped.

To tune/ in the workdir: best.toml, a spec; trials.csv; tuning_history.png. The score is the best
epoch's on the selection split; the best of many trials is optimistic there. The exam stays
unseen."""

from pathlib import Path

from absl import flags

from multitask.commands import import_tensorflow
from multitask.commands.spec_flags import (
    OVERRIDES,
    check_needed,
    define_records_dir,
    define_spec_flags,
    folder_or_none,
    resolve_spec,
)

# Of the phase finetune, or settled: a trial learns from cached features.
NOT_TUNED = ("epochs_finetune", "freeze_depth", "cache_features")


def define_flags(values: flags.FlagValues) -> None:
    to = {"flag_values": values}
    define_spec_flags(values, [flag for flag in OVERRIDES if flag not in NOT_TUNED])
    define_records_dir(values)
    flags.DEFINE_string("workdir", None, "folder of the search; new, or of the same search", **to)
    flags.DEFINE_integer(
        "trials", 50, "how many in all; those made before count", lower_bound=1, **to
    )
    flags.DEFINE_float(
        "minutes",
        0.0,
        "begin no further trial after so many (the features' time apart); 0 = no limit",
        lower_bound=0,
        **to,
    )
    flags.DEFINE_string(
        "metric",
        "macro_f1",
        "what is to be high on the selection split: macro_f1 (the mean of all tasks), or the name "
        "of a task (its macro-F1; also artist/macro_f1)",
        **to,
    )
    flags.DEFINE_string(
        "search",
        "heads,rates,losses",
        "which groups: all, or some of heads, rates, losses, weights",
        **to,
    )


def main(values: flags.FlagValues, left: list[str]) -> None:
    check_needed(values, left, "tune", ("spec", "data_dir", "workdir"))
    spec = resolve_spec(values)

    import_tensorflow()
    from multitask.learning.tuning import GROUPS, tune

    groups = [name.strip() for name in values.search.split(",") if name.strip()]
    tune(
        spec,
        Path(values.data_dir),
        Path(values.workdir),
        records_dir=folder_or_none(values.records_dir),
        trials=values.trials,
        minutes=values.minutes,
        metric=values.metric,
        groups=tuple(GROUPS) if groups == ["all"] else groups,
    )
