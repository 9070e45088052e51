"""Search for better hyper-parameters of the heads of a spec, on cached features of the trunk.

  multitask tune --spec=wikiart --data_dir=DIR --workdir=runs/tuning
  multitask train --spec=runs/tuning/tune/best.toml --data_dir=DIR --workdir=runs/tuned

A trial is the phase heads. Trial 0 is the unchanged spec; the others change, for each task:
  heads    units, residual_units, se_units: a quarter to twice the spec's (all entries of a list
           by one factor); each dropout: 0 to 0.6
  rates    the learning rate: a tenth to ten times the spec's; period, decay, ... stay
  losses   the focal loss' gamma: 0 to 4; class_weight_exponent: 0 to 1
  weights  the task's weight: a quarter to four times the spec's. The heads share no trainable
           weights, so it hardly affects a trial, and its best value is random: searched only
           with --search=all or --search=weights
Options that the kind of head or loss does not have are not searched. A trial below the median of
the others is stopped early. The same command resumes an interrupted search.

Writes to tune/ in the workdir: best.toml, a spec; trials.csv; tuning_history.png. The score is the
best epoch's on the validation split; the best of many trials is optimistic there. The test set is
not read.
"""

from pathlib import Path

from absl import flags

from multitask.commands.spec_flags import (
    OVERRIDES,
    define_records_dir,
    define_spec_flags,
    path_or_none,
    resolve_data,
)
from multitask.startup import import_tensorflow

# Flags of the phase finetune, and cache_features: a trial trains on cached features.
NOT_TUNED = ("epochs_finetune", "freeze_depth", "cache_features")


def define_flags(values: flags.FlagValues) -> None:
    """Define the flags of `tune`."""
    to = {"flag_values": values}
    define_spec_flags(values, [flag for flag in OVERRIDES if flag not in NOT_TUNED])
    define_records_dir(values)
    flags.DEFINE_string("workdir", None, "folder of the search; new, or of the same search", **to)
    flags.DEFINE_integer(
        "trials",
        50,
        "total number of trials, including those of earlier calls",
        lower_bound=1,
        **to,
    )
    flags.DEFINE_float(
        "minutes",
        0.0,
        "start no further trial after this many minutes of trials; 0 = no limit",
        lower_bound=0,
        **to,
    )
    flags.DEFINE_string(
        "metric",
        "macro_f1",
        "metric of the validation split that is maximised: macro_f1 (the mean of all tasks), or "
        "the name of a task (its macro-F1; also artist/macro_f1)",
        **to,
    )
    flags.DEFINE_string(
        "search",
        "heads,rates,losses",
        "searched groups: all, or some of heads, rates, losses, weights",
        **to,
    )


def main(values: flags.FlagValues, left: list[str]) -> None:
    """Run or resume a search."""
    spec, data_dir = resolve_data(values, left, "tune", ("workdir",))

    import_tensorflow()
    from multitask.annexes.tune.search import tune

    tune(
        spec,
        data_dir,
        Path(values.workdir),
        records_dir=path_or_none(values.records_dir),
        trials=values.trials,
        minutes=values.minutes,
        metric=values.metric,
        groups=[name.strip() for name in values.search.split(",") if name.strip()],
    )
