"""Measures the speed-ups that this project claims, each as a ratio to the plain way, in one run.

    python tools/benchmark.py input [--wikiart=DIR] [--out=FILE.json]
    python tools/benchmark.py start [--out=FILE.json]
    python tools/benchmark.py frozen [--out=FILE.json]
    python tools/benchmark.py features [--trunk=NAME] [--out=FILE.json]
    python tools/benchmark.py finetune [--trunk=NAME] [--out=FILE.json]
    python tools/benchmark.py step [--trunk=NAME] [--timm_python=PYTHON] [--out=FILE.json]
    python tools/benchmark.py similar [--out=FILE.json]
    python tools/benchmark.py export [--out=FILE.json]
    python tools/benchmark.py serving [--timm_python=PYTHON] [--out=FILE.json]

`input`: reading images. It paints what it reads, into a temporary folder: large originals as a
museum has them, and small ones by the ten thousand (some minutes and 3 GB). Each pair is timed in
turns, several times, and the best of each counts. With --wikiart, the folder with ArtGAN's
wikiart_csv/, the merging of the real CSVs is timed too.

`start`: the time until a new pipeline of records has its first batch.

`frozen`: learning from cached features of the frozen trunk, with the heads of wikiart.toml and with
linear ones, which show the cost without the heads; and AdamW's step in one kernel.

`features`: the frozen trunk's features of records by the fastest library, compared with its forward
pass alone and with TensorFlow.

`finetune`: fine-tuning on cached maps of the frozen blocks, compared with the whole trunk.

`step`: a training step of the trunk and a linear head, with everything trained and with the last 60
layers trained. Ours is compared with ours with Keras' BatchNorm (only where everything is trained:
otherwise BatchNorm is frozen), with ours with TensorFlow's gradient of depthwise filters, and with
timm's in PyTorch (where this Python, or the one of --timm_python, has timm).

`similar`: the exact search for the nearest of as many vectors as WikiArt has training images.

`export`: writing and loading a SavedModel whose signatures share one traced network.

`serving`: wikiart.toml's network by every runtime, compared with Keras and timm's PyTorch
efficientnet_b2 (where this Python, or the one of --timm_python, has timm); all tasks compared with
one of them.
"""

import json
import os
import platform
import sys
from pathlib import Path

from absl import flags

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks.cached import measure_features, measure_finetune, measure_frozen
from benchmarks.reading import measure_input, measure_start
from benchmarks.search import measure_similar
from benchmarks.serving import measure_export, measure_serving
from benchmarks.step import measure_step
from benchmarks.training import TRUNKS

BENCHMARKS = {
    "input": measure_input,
    "start": measure_start,
    "frozen": measure_frozen,
    "features": measure_features,
    "finetune": measure_finetune,
    "step": measure_step,
    "similar": measure_similar,
    "export": measure_export,
    "serving": measure_serving,
}


def show(rows: list[dict]) -> str:
    width = max(len(row["what"]) for row in rows)
    lines = [f"{'':<{width}}  {'this':>10}  {'plain':>10}  ratio"]
    lines += [
        f"{row['what']:<{width}}  {row['fast']:>10}  {row['plain']:>10}  {row['ratio']:.2f}"
        for row in rows
    ]
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    values = flags.FlagValues()
    to = {"flag_values": values}
    flags.DEFINE_string("out", None, "Write the rows to this JSON file too.", **to)
    flags.DEFINE_string("wikiart", None, "Folder with ArtGAN's wikiart_csv/.", **to)
    flags.DEFINE_string("timm_python", None, "A Python that has timm and PyTorch.", **to)
    one_trunk = "features, finetune, step: this trunk alone."
    flags.DEFINE_enum("trunk", None, TRUNKS, one_trunk, **to)
    flags.DEFINE_string("scratch", None, "Where to paint; default: the system's.", **to)
    flags.DEFINE_integer("originals", 480, "Large images.", lower_bound=96, **to)
    flags.DEFINE_integer("records", 50_000, "Small images.", lower_bound=2000, **to)
    flags.DEFINE_boolean("help", False, "Print this and stop.", **to)
    try:
        names = values(argv)[1:]
        if values.help:
            print(__doc__, values.get_help(), sep="\n")
            return 0
        if len(names) != 1 or names[0] not in BENCHMARKS:
            raise flags.Error(f"name one of: {', '.join(BENCHMARKS)}; got {names}")
    except flags.Error as error:
        print(f"benchmark.py: {error}", file=sys.stderr)
        return 2
    rows = BENCHMARKS[names[0]](values)
    print(show(rows))
    if values.out:
        import tensorflow as tf

        machine = {
            "cores": os.cpu_count(),
            "processor": platform.processor() or platform.machine(),
            "python": platform.python_version(),
            "tensorflow": tf.__version__,
        }
        text = json.dumps({"machine": machine, "rows": rows}, indent=1, ensure_ascii=False)
        Path(values.out).write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
