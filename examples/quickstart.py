# %% [markdown]
# # Quick start
#
# This notebook trains one model with three tasks: artist, style and genre. The images are painted
# by multitask itself, so no data is downloaded. The notebook then evaluates, exports and uses the
# model. It needs Python 3.11 or newer. The next cell installs multitask if it is not installed.

# %%
import importlib.util
import subprocess
import sys
from pathlib import Path

if importlib.util.find_spec("multitask") is None:
    # From the checkout that this notebook is in, or else from the package index.
    checkouts = [f for f in Path.cwd().parents if (f / "multitask" / "__init__.py").is_file()]
    package = str(checkouts[0]) if checkouts else "multitask-paintings"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", package], check=True)
    importlib.invalidate_caches()

# %% [markdown]
# ## Settings
#
# The demo spec trains EfficientNetB2. This notebook changes the trunk to EfficientNetB0, which is
# smaller. The whole notebook takes a few minutes on two CPU cores.
#
# `MULTITASK_NOTEBOOK_SMALL=1` selects a run that is only a check of the notebook: its model learns
# nothing.

# %%
import os

SMALL = os.environ.get("MULTITASK_NOTEBOOK_SMALL") == "1"
# All files that this notebook writes are in this folder.
FOLDER = Path("runs/quickstart_small" if SMALL else "runs/quickstart")
IMAGES = 80 if SMALL else 1200
CHANGES = {"trunk.name": "efficientnetb0"}
if SMALL:
    CHANGES |= {"image_size": 32, "phases.finetune.epochs": 1, "max_unknown": 0.1}

# %% [markdown]
# ## The data
#
# `paint_demo` paints images in the layout of WikiArt: a folder of images, and one class file and
# two CSVs per task.

# %%
import multitask as mt

DATA = mt.paint_demo(FOLDER / "demo", images=IMAGES)

# %% [markdown]
# Not every image has a label of every task. This table counts the labels per class.

# %%
import pandas as pd


def labels(task, split):
    """Read a CSV of a task, with names instead of indices."""
    lines = (DATA / "wikiart_csv" / f"{task}_class.txt").read_text().splitlines()
    names = {int(index): name for index, name in (line.split(" ", 1) for line in lines)}
    rows = pd.read_csv(DATA / "wikiart_csv" / f"{task}_{split}.csv", names=["path", "index"])
    return rows.assign(label=rows["index"].map(names)).dropna()


counts = {
    (task, split): labels(task, split)["label"].value_counts()
    for task in ("artist", "style", "genre")
    for split in ("train", "val")  # WikiArt's name of the test files
}
pd.DataFrame(counts).stack(0, future_stack=True).dropna().astype(int).swaplevel().sort_index()

# %%
import matplotlib.pyplot as plt
from PIL import Image


def show(titles):
    """Show images with a title: path below the image folder -> title."""
    _, axes = plt.subplots(1, len(titles), figsize=(2 * len(titles), 2.4))
    for axis, (path, title) in zip(axes, titles.items(), strict=True):
        axis.imshow(Image.open(DATA / "wikiart" / path))
        axis.set_title(title, fontsize=8)
        axis.axis("off")


first = labels("style", "train").groupby("label").head(2).sort_values("label")
show(dict(zip(first["path"], first["label"], strict=True)))

# %% [markdown]
# ## The spec
#
# A spec names the tasks and their files, and holds all settings. A wrong value is refused with the
# name of its field.

# %%
spec = mt.load_spec("demo", CHANGES)
try:
    mt.load_spec("demo", image_size=10)
except mt.InputError as error:
    print(f"field: {error.field}\n{error}")
spec.task_names

# %% [markdown]
# ## Training
#
# The phase `heads` trains the heads, and the phase `finetune` also trains the trunk. A call that is
# interrupted resumes where it stopped: run the cell again. A finished run is not trained twice.

# %%
run = mt.train(spec, data_dir=DATA, workdir=FOLDER / "run")
run

# %%
print("best epoch:", run.best_epoch)
run.history.filter(regex="^epoch$|val_(loss|macro_f1)$").round(3).tail()

# %% [markdown]
# ## Evaluation
#
# The evaluation uses the best epoch and the test set. It writes a report, which is one HTML page.

# %%
evaluation = run.evaluate()
print(evaluation.report)
evaluation

# %%
evaluation.plot("f1_scores", task="style")

# %% [markdown]
# ### Wrong predictions
#
# `predictions` has one row per test image. The true class is empty if the image has no label of
# the task. These are the wrong predictions with the highest confidence.

# %%
TASK = "artist"
predictions = evaluation.predictions
labelled = predictions[f"{TASK}/true"].notna()
wrong = predictions[labelled & (predictions[f"{TASK}/true"] != predictions[f"{TASK}/predicted"])]
wrong = wrong.sort_values(f"{TASK}/confidence", ascending=False).filter(regex=f"path|{TASK}/")
wrong.head()

# %%
evaluation.plot("outliers", task=TASK)

# %% [markdown]
# ### Similar images
#
# Two images are similar if the trunk gives them similar features. The first image is a test image,
# the others are training images.

# %%
model = run.load_model()
query = evaluation.predictions["path"].iloc[0]
similar = model.similar(DATA / "wikiart" / query, top_k=4)
show({query: "test image"} | dict(zip(similar["path"], similar["style/label"], strict=True)))
similar

# %% [markdown]
# ## Export and prediction
#
# An export has the model in a format that other programs read. `formats=["onnx"]` or `["litert"]`
# needs the extra of that name. `multitask serve` shows an export in a browser.

# %%
exported = run.export()
sorted(path.name for path in exported.iterdir())

# %%
model = mt.load_model(exported)
images = [DATA / "wikiart" / path for path in labels("genre", "val")["path"].head(4)]
predictions = model.predict(images)
predictions.to_csv(FOLDER / "predictions.csv", index=False)
predictions

# %% [markdown]
# ## Less output
#
# The level `WARNING` hides messages and progress bars. `mt.open_run` opens a run that exists, for
# example in another notebook.

# %%
import logging

logging.getLogger("multitask").setLevel(logging.WARNING)
run = mt.open_run(FOLDER / "run")
run.evaluate(similar=False).metrics
