"""One model with one trunk and one head per task: artist, style and genre of a painting.

    import multitask as mt

    run = mt.train("wikiart_lite", data_dir="DIR", workdir="runs/first")
    evaluation = run.evaluate()
    run.export(formats=["onnx"])
    model = mt.load_model("runs/first/export")
    model.predict(["a.jpg"])

The names in `__all__` are public; they are imported when they are first used. All other names are
private and may change.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multitask.errors import InputError, RunError
    from multitask.library.drafts import draft_spec
    from multitask.library.evaluations import RunEvaluation
    from multitask.library.models import ImageModel, PredictionTable, load_model
    from multitask.library.painting import paint_demo
    from multitask.library.parts import (
        register_head,
        register_loss,
        register_schedule,
        register_trunk,
    )
    from multitask.library.runs import TrainingRun, load_spec, open_run, train

__version__ = "0.2.0"
__all__ = [
    "ImageModel",
    "InputError",
    "PredictionTable",
    "RunError",
    "RunEvaluation",
    "TrainingRun",
    "draft_spec",
    "load_model",
    "load_spec",
    "open_run",
    "paint_demo",
    "register_head",
    "register_loss",
    "register_schedule",
    "register_trunk",
    "train",
]
_MODULES = {
    "errors": ("InputError", "RunError"),
    "library.drafts": ("draft_spec",),
    "library.evaluations": ("RunEvaluation",),
    "library.models": ("ImageModel", "PredictionTable", "load_model"),
    "library.parts": ("register_head", "register_loss", "register_schedule", "register_trunk"),
    "library.painting": ("paint_demo",),
    "library.runs": ("TrainingRun", "load_spec", "open_run", "train"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'multitask' has no attribute {name!r}")
    return getattr(importlib.import_module(f"multitask.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
