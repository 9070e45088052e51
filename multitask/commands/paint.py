"""Paint a small data set in the layout of WikiArt, to try everything without a download.

  multitask paint --out=demo
  multitask train --spec=demo --data_dir=demo --workdir=runs/demo

Each image shows one class of each task: artist, style and genre, drawn independently of each other.
Some labels are missing and some rows are wrong on purpose, as in the real data; DIR/README.txt
lists them. The same flags paint the same images.
"""

from pathlib import Path

from absl import flags

from multitask.errors import InputError


def define_flags(values: flags.FlagValues) -> None:
    """Define the flags of `paint`."""
    flags.DEFINE_string("out", None, "folder to paint into; new or empty", flag_values=values)
    flags.DEFINE_integer("images", 1200, "number of images, 40 or more", flag_values=values)
    flags.DEFINE_integer("size", 96, "pixels of each side, 16 or more", flag_values=values)
    flags.DEFINE_integer("seed", 0, "seed of the random images", flag_values=values)


def main(values: flags.FlagValues, left: list[str]) -> None:
    """Paint the data set."""
    if left:
        raise InputError(f"multitask paint: takes flags only, not {left[0]!r}")
    if not values.out:
        raise InputError("multitask paint: --out is needed; --help lists the flags")
    from multitask.annexes.painting.data_set import Settings, paint_data_set

    settings = Settings(values.images, values.size, values.seed)
    if paint_data_set(Path(values.out), settings):
        print(f"Painted {settings.images:,} images in {values.out}")
    else:
        print(f"{values.out} already holds these {settings.images:,} images; nothing to do")
