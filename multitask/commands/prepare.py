"""Decode the training images of a data set once into records that can be read fast.

  multitask prepare --spec=wikiart --data_dir=DIR

Each image is turned upright, reduced to a bounded shorter side and stored as JPEG. Excluded images
are listed with their reason in excluded.csv, next to the records. `train` does the same on first
use; matching records are used again. On a cluster:
--beam_runner=DataflowRunner --beam_options=project=P,region=R,temp_location=gs://…
"""

from absl import flags

from multitask.commands.spec_flags import (
    OF_RECORDS,
    define_records_dir,
    define_spec_flags,
    path_or_none,
    resolve_data,
)
from multitask.startup import import_tensorflow


def define_flags(values: flags.FlagValues) -> None:
    define_spec_flags(values, OF_RECORDS)
    define_records_dir(values)
    flags.DEFINE_string(
        "beam_runner",
        None,
        "prepare with Apache Beam, on this runner: DirectRunner, DataflowRunner, FlinkRunner, "
        "SparkRunner (pip install '.[beam]')",
        flag_values=values,
    )
    flags.DEFINE_list(
        "beam_options",
        [],
        "Beam's own options, e.g. direct_num_workers=2,direct_running_mode=multi_processing",
        flag_values=values,
    )


def main(values: flags.FlagValues, left: list[str]) -> None:
    spec, data_dir = resolve_data(values, left, "prepare")

    import_tensorflow()
    from multitask.data.records import describe_table, prepare

    prepared = prepare(
        spec,
        data_dir,
        path_or_none(values.records_dir),
        beam_runner=values.beam_runner,
        beam_options=values.beam_options,
    )
    print("\n".join(describe_table(prepared.table)))
    how = "Prepared" if prepared.fresh else "Already prepared"
    print(f"\n{how}: {prepared.folder} ({prepared.size_bytes / 1e6:,.1f} MB)")
