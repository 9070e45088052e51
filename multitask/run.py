"""A run: one workdir, its files and its config.json.

config.json             every resolved setting and package version
models/                 best_model.keras, best_model_{task}.keras
logs/                   history.csv, TensorBoard
checkpoint/             the last two checkpoints, to resume from
results/                output of `evaluate`
export/                 output of `export`
similar/                embeddings of the training images, by model
"""

import contextlib
import importlib.metadata
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multitask import __version__
from multitask.files import LEFTOVER, check_writable, clear_leftovers, read_json, write_json
from multitask.spec import (
    CONTROL,
    DataSpec,
    InputError,
    outside_paths,
    parse_spec,
    quoted,
    refuse_outside,
    shown,
)

FOLDERS = ("models", "logs", "checkpoint", "results", "export", "similar")
FORMAT = 2  # of config.json; 1 called the test set `val` and the validation split `selection`
PACKAGES = ("tensorflow", "tensorflow-cpu", "keras", "numpy", "pandas", "scikit-learn")


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages, e.g. `{"python": "3.11.7", "keras": "3.15.1"}`."""
    versions = {"python": platform.python_version(), "multitask": __version__}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def flatten(value: Any, place: str = "") -> dict[str, Any]:
    """Flatten nested settings: `{"task[0].head.kind": "linear", …}`."""
    if isinstance(value, dict):
        pairs = ((f"{place}.{key}" if place else key, inner) for key, inner in value.items())
    elif isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        pairs = ((f"{place}[{index}]", inner) for index, inner in enumerate(value))
    else:
        return {place: value}
    return {k: v for where, inner in pairs for k, v in flatten(inner, where).items()}


@dataclass(frozen=True)
class Run:
    """A workdir and its settings."""

    workdir: Path
    spec: DataSpec
    data_dir: Path

    @property
    def models(self) -> Path:
        """The saved models."""
        return self.workdir / "models"

    @property
    def results(self) -> Path:
        """The files that `evaluate` writes."""
        return self.workdir / "results"

    @property
    def logs(self) -> Path:
        """history.csv and TensorBoard."""
        return self.workdir / "logs"

    @property
    def checkpoint(self) -> Path:
        """The last two checkpoints."""
        return self.workdir / "checkpoint"

    @property
    def best_model(self) -> Path:
        """The best model by the mean of all tasks' macro-F1."""
        return self.models / "best_model.keras"

    def best_model_of(self, task: str) -> Path:
        """The best model by one task's macro-F1."""
        return self.models / f"best_model_{task}.keras"


def name_in_run(run: Run, model_file: Path) -> str:
    """A model's name in the reports: its path, relative to the workdir if it is inside."""
    workdir, model_file = run.workdir.resolve(), model_file.resolve()
    inside = model_file.is_relative_to(workdir)
    return str(model_file.relative_to(workdir) if inside else model_file)


def _read_config(workdir: Path, kind: str = "run") -> dict[str, Any]:
    path = workdir / "config.json"
    try:
        config = read_json(path)
        version = config.get("format", 1)
        if not isinstance(config["spec"], dict) or not isinstance(config["data_dir"], str):
            raise ValueError("spec or data_dir is of another type")
        if "\0" in config["data_dir"]:
            raise ValueError(f"data_dir: {shown(config['data_dir'])}: {CONTROL}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a {kind}'s configuration: {error}") from None
    if version != FORMAT:
        raise InputError(
            f"{path}: format {shown(version)}, written by another version of multitask; this one "
            f"reads format {FORMAT}: train in a new workdir, or use the version that wrote it"
        )
    # A run of before this field existed was trained on plain numbers.
    config["spec"].setdefault("convert_profiles", False)
    return config


def saved_spec(workdir: Path) -> DataSpec | None:
    """The spec of the run in a folder; None where there is no run.

    Raises:
        InputError: its config.json is broken or of another version.
    """
    if not (workdir / "config.json").is_file():
        return None
    return parse_spec(_read_config(workdir)["spec"], source=str(workdir / "config.json"))


def check_workdir(workdir: Path, spec: DataSpec, *, kind: str = "run", **settings: Any) -> bool:
    """Check a folder before a training, without writing.

    Args:
        workdir: the folder.
        spec: the settings of the run.
        kind: name of the folder's content for messages, e.g. `run`.
        settings: further entries of config.json that must be the same.

    Returns:
        Whether it holds a run with the same settings, to be resumed.

    Raises:
        InputError: the folder holds a run with other settings (each is named) or other files, or
            cannot be written.
    """
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"{workdir}: is a file, not a folder", field="workdir")
    parent = check_writable(workdir, field="workdir")
    if not (workdir / "config.json").exists():
        others = _others(workdir) if parent == workdir else []
        if others:
            raise InputError(
                f"{workdir}: holds other files ({others[0].name}, …) and no {kind}; "
                "name a new or empty folder",
                field="workdir",
            )
        return False
    config = _read_config(workdir, kind)
    # Parsed, so that a field that is newer than the run has its default.
    before = parse_spec(config["spec"], source=str(workdir / "config.json")).to_dict()
    before |= {name: config.get(name) for name in settings}
    refuse_other_settings(workdir, before, spec.to_dict() | settings, kind=kind)
    return True


def _others(workdir: Path) -> list[Path]:
    """The files of a folder without a config.json that do not come from an interrupted start.

    An interrupted start of a run leaves only hidden files and folders of FOLDERS without a finished
    file.
    """
    return [
        path
        for path in sorted(workdir.iterdir())
        if not path.name.startswith(".") and not (path.name in FOLDERS and _is_empty(path))
    ]


def _is_empty(folder: Path) -> bool:
    """Whether a folder holds only folders and unfinished files."""
    return folder.is_dir() and all(
        LEFTOVER.fullmatch(path.name) or (not path.is_symlink() and _is_empty(path))
        for path in folder.iterdir()
    )


def refuse_other_settings(
    folder: Path,
    before: dict[str, Any],
    now: dict[str, Any],
    *,
    kind: str,
    field: str = "workdir",
) -> None:
    """Raise InputError with the names of the settings that differ.

    Args:
        folder: the folder or file with the settings, for the message.
        before: nested settings in the folder.
        now: nested settings of this call.
        kind: name of the folder's content for messages, e.g. `run`.
        field: the argument that names the folder.
    """
    old, new = flatten(before), flatten(now)
    changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    if changed:
        first = "; ".join(
            f"{quoted(key)[1:-1]}: {shown(old.get(key))} before, {shown(new.get(key))} now"
            for key in changed[:4]
        )
        more = f"; and {len(changed) - 4} more" if len(changed) > 4 else ""
        raise InputError(
            f"{folder}: holds a {kind} with other settings ({first}{more}); "
            "name another folder, or give the same settings to resume",
            field=field,
        )


def check_same_data(workdir: Path, fingerprint: str, *, kind: str = "run") -> None:
    """Raise InputError if the images or labels have changed since the run began."""
    before = _read_config(workdir, kind).get("data_fingerprint")
    if before not in (None, fingerprint):
        raise InputError(
            f"{workdir}: the images or labels have changed since this {kind} began; "
            "name another folder, or restore the data",
            field="workdir",
        )


def write_config(
    workdir: Path, spec: DataSpec, data_dir: Path, *, fingerprint: str | None, **settings: Any
) -> None:
    """Write config.json, which `check_workdir` and `check_same_data` read later.

    Args:
        workdir: the folder.
        spec: with the overrides of this run.
        data_dir: the folder that the spec's paths are relative to.
        fingerprint: of the images and labels.
        settings: further entries, as in `check_workdir`.
    """
    write_json(
        workdir / "config.json",
        {
            "format": FORMAT,
            "data_dir": str(data_dir.resolve()),
            "data_fingerprint": fingerprint,
            "spec_file": spec.source_file,
            # The user allowed it when the run was made; otherwise this call would have failed.
            "allow_outside": any(outside_paths(spec)),
            "versions": package_versions(),
            "spec": spec.to_dict(),
            **settings,
        },
    )


def start_run(
    workdir: Path, spec: DataSpec, data_dir: Path, *, fingerprint: str | None = None
) -> Run:
    """Create the workdir with its config.json, or open the run that is there.

    config.json is written first, so that it exists in every workdir with other files of a run.

    Args:
        workdir: folder of the run.
        spec: with the overrides of this run.
        data_dir: the folder that the spec's paths are relative to.
        fingerprint: of the images and labels.
    """
    run = Run(workdir, spec, data_dir)
    write_config(workdir, spec, data_dir, fingerprint=fingerprint)
    for folder in (run.models, run.logs):
        folder.mkdir(exist_ok=True)
    for folder in (run.workdir, *(workdir / name for name in FOLDERS)):
        if folder.is_dir():
            clear_leftovers(folder)
    return run


def open_run(workdir: Path, data_dir: Path | None = None, *, allow_outside: bool = False) -> Run:
    """Open a run that exists, from its workdir alone.

    Args:
        workdir: the folder that `train` wrote.
        data_dir: the present folder of the data; None: the folder during the training.
        allow_outside: whether the spec's paths may leave the data folder; they also may if the
            training allowed it.

    Raises:
        InputError: there is no run, or its config.json is broken or of another version.
    """
    if not (workdir / "config.json").is_file():
        reason = "there is no such folder"
        if workdir.exists():
            reason = "holds no run (no config.json)"
        raise InputError(f"{workdir}: {reason}; `multitask train` makes one", field="workdir")
    config = _read_config(workdir)
    spec = parse_spec(config["spec"], source=str(workdir / "config.json"))
    refuse_outside(spec, allowed=allow_outside or config.get("allow_outside") is True)
    return Run(workdir, spec, data_dir or Path(config["data_dir"]))
