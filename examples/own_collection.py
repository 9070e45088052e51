# %% [markdown]
# # Your own collection
#
# This notebook starts with a table of one's own: one row per image and one column per task. It
# looks at what multitask guesses about the table, changes a guess, registers a head of one's own,
# trains, evaluates and exports a model, and predicts with a confidence threshold.
#
# The notebook paints its images itself. Replace the cell with the table to use yours.

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
# The whole notebook took 3 to 4 minutes on two CPU cores.
#
# `MULTITASK_NOTEBOOK_SMALL=1` selects a run that is only a check of the notebook: its model learns
# nothing.

# %%
import os

SMALL = os.environ.get("MULTITASK_NOTEBOOK_SMALL") == "1"
# All files that this notebook writes are in this folder.
FOLDER = Path("runs/own_collection_small" if SMALL else "runs/own_collection")
EACH = 3 if SMALL else 20  # objects of each period and medium
IMAGE_SIZE = 32 if SMALL else 64
EPOCHS = 1 if SMALL else 20

# %% [markdown]
# ## The table
#
# The tasks of this example are `period` and `medium`. The period decides the colours of an image,
# and the medium its texture. Some objects have no period: an empty cell is a missing label. Each
# object has two photographs, and hangs in a room.

# %%
import numpy as np
import pandas as pd
from PIL import Image, ImageFilter

COLOURS = {"early": (200, 110, 50), "middle": (50, 100, 190), "late": (90, 180, 70)}
MEDIA = ("fresco", "print")


def paint(period, medium, rng, side=64):
    """Paint an image as an array: blots in the colours of a period, and the lines of a print."""
    coarse = rng.normal(COLOURS[period], 20, (6, 6, 3)).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(coarse).resize((side, side)).filter(ImageFilter.GaussianBlur(2))
    pixels = np.asarray(image, dtype=float)
    if medium == "print":
        rows, columns = np.indices((side, side))
        pixels[(rows + columns + rng.integers(8)) % 8 < 3] *= 0.4
    return (pixels + rng.normal(0, 6, pixels.shape)).clip(0, 255).astype(np.uint8)


rng = np.random.default_rng(0)
(FOLDER / "images").mkdir(parents=True, exist_ok=True)
rows = []
kinds = [(period, medium) for period in COLOURS for medium in MEDIA] * EACH
for number, (period, medium) in enumerate(kinds):
    for view in range(2):
        name = f"{number:03}_{view}.png"
        Image.fromarray(paint(period, medium, rng)).save(FOLDER / "images" / name)
        rows.append(
            {
                "image": name,
                "object": f"inv.{number:03}",
                "period": period if number % 7 else None,
                "medium": medium,
                "room": f"room {number // 6 % 4 + 1}",
            }
        )
pd.DataFrame(rows).to_csv(FOLDER / "collection.csv", index=False)

# %% [markdown]
# From here on the table is a file, as a museum might export it.

# %%
table = pd.read_csv(FOLDER / "collection.csv")
table.head()

# %% [markdown]
# ## The guesses
#
# `draft_spec` looks at the table and the files and guesses what each column is. Nothing is written
# yet. `multitask init` does the same on the command line.

# %%
import multitask as mt

draft = mt.draft_spec(FOLDER / "collection.csv", images=FOLDER / "images")
draft

# %% [markdown]
# The two photographs of an object are a group, which is never split between training and test. A
# fifth of the images is drawn as the test set, because no column says which they are.
#
# One guess is wrong: the values of `room` repeat, as those of a task do, but an image does not show
# where it hangs. `tasks` names the columns to learn. `out` writes the spec to a file, with a
# comment for each guess.

# %%
TASKS = ["period", "medium"]
draft = mt.draft_spec(
    FOLDER / "collection.csv",
    images=FOLDER / "images",
    tasks=TASKS,
    out=FOLDER / "my_collection.toml",
    overwrite=True,
)
print(draft.text)

# %% [markdown]
# ## A head of your own
#
# A spec selects heads by name, and a registered function is such a head. Its keyword-only
# parameters are its options in the spec. This part is optional: the task `period` uses the head
# `linear`.
#
# Register the function again in each program that trains or evaluates the run. An export does not
# need it.


# %%
@mt.register_head
def max_and_mean(features, name, *, units: int = 64):
    """The maximum and the mean of the feature map, and a dense layer."""
    from keras import layers  # imported here, after multitask has silenced TensorFlow's start

    highest = layers.GlobalMaxPooling2D(name=f"{name}_max")(features)
    mean = layers.GlobalAveragePooling2D(name=f"{name}_mean")(features)
    x = layers.Concatenate(name=f"{name}_both")([highest, mean])
    return layers.Dense(units, activation="relu", name=f"{name}_dense")(x)


# %% [markdown]
# ## The spec
#
# The draft suits photographs of paintings: a trunk with ImageNet weights, of which the last layers
# are trained. This notebook learns its painted images from random weights, so that nothing is
# downloaded. `load_spec` replaces fields of the file, in every task or in one; you can also edit
# the file.

# %%
SCHEDULE = {"kind": "cosine", "rate": 1e-3, "epochs": EPOCHS}
changes = {
    "trunk": {
        "name": "efficientnetb0",
        "weights": "none",
        "batchnorm_momentum": 0.9,
        "stochastic_depth": 0.0,
        "schedule": SCHEDULE,
    },
    "phases": {"heads": {"epochs": 1}, "finetune": {"epochs": EPOCHS, "rate_factor": 1.0}},
    "freeze_depth": "none",
    "task.schedule": SCHEDULE,
    "task.head": {"kind": "linear"},
    "task[medium].head": {"kind": "max_and_mean", "units": 32},
}
spec = mt.load_spec(
    FOLDER / "my_collection.toml", changes, image_size=IMAGE_SIZE, batch_size=16, validation=0.3
)

# %% [markdown]
# ## Train and evaluate
#
# The data folder is that of the spec's file.

# %%
run = mt.train(spec, workdir=FOLDER / "run")
run

# %%
evaluation = run.evaluate()
evaluation

# %% [markdown]
# The test set is small, so one image more or less changes the metrics visibly. `report.html` has
# their confidence intervals.
#
# ## Export and predict
#
# `predict` takes files, the bytes of files, Pillow images and arrays. With `min_confidence`, a
# prediction below it is `uncertain`.

# %%
model = mt.load_model(run.export())
new = [paint(period, medium, rng) for period in COLOURS for medium in MEDIA]
predictions = model.predict(new, min_confidence=0.8)
predictions

# %% [markdown]
# `thresholds` looks up the confidence that reaches an accuracy on the validation split. It is
# infinite for a task that has no such confidence, so that all its predictions are uncertain. It is
# refused if no task has one.

# %%
try:
    thresholds = model.thresholds(accuracy=0.8)
except mt.InputError as error:
    print(error)
    thresholds = 0.8
known = model.predict(
    [FOLDER / "images" / name for name in table["image"]], min_confidence=thresholds
)
print(thresholds)
for task in TASKS:
    print(f"uncertain {task}: {(known[f'{task}/predicted'] == 'uncertain').mean():.0%}")

# %% [markdown]
# The predictions can fill the empty cells of the table.

# %%
predictions = known[["period/predicted", "period/1_probability"]]
filled = table.join(predictions)
filled = filled[filled["period"].isna()]
filled.to_csv(FOLDER / "filled.csv", index=False)
filled.head()
