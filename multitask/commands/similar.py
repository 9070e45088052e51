"""Find the training images that are most similar to an image, by their embeddings.

  multitask similar --workdir=runs/first --query=IMAGE
  multitask similar --workdir=runs/first --task=style --top_k=10 IMAGE_OR_FOLDER …

The first call embeds all training images and stores the embeddings in similar/ in the workdir.
Prints rank, distance (1 - cosine of the embeddings: 0 = the same, 1 = nothing in common), path and
labels, and plots them in results/similar_{IMAGE}.png.
"""

from pathlib import Path

from absl import flags

from multitask.commands.run_flags import define_run_flags, run_and_model
from multitask.commands.spec_flags import path_or_none
from multitask.console import log_to_stderr
from multitask.startup import import_tensorflow


def define_flags(values: flags.FlagValues) -> None:
    """Define the flags of `similar`."""
    define_run_flags(values)
    to = {"flag_values": values}
    flags.DEFINE_multi_string("query", [], "the image; may be given several times", **to)
    flags.DEFINE_integer("top_k", 5, "number of images to find", lower_bound=1, **to)
    flags.DEFINE_string(
        "task",
        None,
        "compare the embeddings of this task's head instead of those of the trunk, which all the "
        "tasks share",
        **to,
    )
    flags.DEFINE_string("out", None, "folder for the plots, instead of results/", **to)


def main(values: flags.FlagValues, left: list[str]) -> None:
    """Find and print similar images."""
    run, model_file = run_and_model(values, [], "similar")

    import_tensorflow()
    from multitask.evaluation.neighbours import find_similar, neighbour_lines
    from multitask.serving.predict import find_images
    from multitask.trained import open_trained

    log_to_stderr()
    results = find_similar(
        open_trained(run, model_file),
        [Path(name) for name in find_images([*values.query, *left])],
        task=values.task,
        top_k=values.top_k,
        out=path_or_none(values.out),
    )
    for result in results:
        print("\n".join(neighbour_lines(result)))
        print(f"Plot: {result.plot}")
