"""Find the training pictures that are nearest to a picture, as the model sees them.

  multitask similar --workdir=runs/first --query=PICTURE
  multitask similar --workdir=runs/first --task=style --top_k=10 PICTURE_OR_FOLDER …

The first call embeds every training picture, once, into similar/ in the workdir. Prints rank,
distance (1 - cosine of the embeddings: 0 = the same, 1 = nothing in common), path and labels, and
draws them in results/similar_{PICTURE}.png."""

import functools
import sys
from pathlib import Path

from absl import flags

from multitask.commands import import_tensorflow
from multitask.commands.run_flags import define_run_flags, run_and_model
from multitask.console import note


def define_flags(values: flags.FlagValues) -> None:
    define_run_flags(values)
    to = {"flag_values": values}
    flags.DEFINE_multi_string("query", [], "the picture; may be given several times", **to)
    flags.DEFINE_integer("top_k", 5, "how many pictures to find", lower_bound=1, **to)
    flags.DEFINE_string(
        "task",
        None,
        "compare what this task's head makes of the pictures, not what the trunk, which all the "
        "tasks share, makes of them",
        **to,
    )
    flags.DEFINE_string("out", None, "folder for the figures, instead of results/", **to)


def main(values: flags.FlagValues, left: list[str]) -> None:
    run, model_file = run_and_model(values, [], "similar")

    import_tensorflow()
    from multitask.evaluation.similar import find_similar, neighbour_lines
    from multitask.serving.predict import find_pictures

    tell = functools.partial(note, stream=sys.stderr)
    found = find_similar(
        run,
        [Path(name) for name in find_pictures([*values.query, *left], tell=tell)],
        model_file=model_file,
        task=values.task,
        top_k=values.top_k,
        out=Path(values.out) if values.out else None,
    )
    for one in found:
        print("\n".join(neighbour_lines(one)))
        print(f"Figure: {one.figure}")
