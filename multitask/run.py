"""One run is one workdir: where its files lie, and its config.json.

config.json             every resolved setting and package version
models/                 best_model.keras, best_model_{task}.keras
logs/                   history.csv, TensorBoard
checkpoint/             the last two checkpoints, to go on from
results/                what `evaluate` writes
export/                 what `export` writes
similar/                what `similar` embedded, by model
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
PACKAGES = ("tensorflow", "tensorflow-cpu", "keras", "numpy", "pandas", "scikit-learn")


def package_versions() -> dict[str, str]:
    """What the run was made with, e.g. `{"python": "3.11.7", "keras": "3.15.1", …}`."""
    versions = {"python": platform.python_version(), "multitask": __version__}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def flatten(value: Any, place: str = "") -> dict[str, Any]:
    """Nested settings -> `{"task[0].head.kind": "linear", …}`."""
    if isinstance(value, dict):
        pairs = ((f"{place}.{key}" if place else key, inner) for key, inner in value.items())
    elif isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        pairs = ((f"{place}[{index}]", inner) for index, inner in enumerate(value))
    else:
        return {place: value}
    return {k: v for where, inner in pairs for k, v in flatten(inner, where).items()}


@dataclass(frozen=True)
class Run:
    """A workdir and the settings that it was made with."""

    workdir: Path
    spec: DataSpec
    data_dir: Path

    @property
    def models(self) -> Path:
        return self.workdir / "models"

    @property
    def results(self) -> Path:
        return self.workdir / "results"

    @property
    def logs(self) -> Path:
        return self.workdir / "logs"

    @property
    def checkpoint(self) -> Path:
        return self.workdir / "checkpoint"

    @property
    def best_model(self) -> Path:
        return self.models / "best_model.keras"

    def best_model_of(self, task: str) -> Path:
        return self.models / f"best_model_{task}.keras"


def name_in_run(run: Run, model_file: Path) -> str:
    """A model's name in the reports: where it lies in the workdir, whatever that is called."""
    workdir, model_file = run.workdir.resolve(), model_file.resolve()
    inside = model_file.is_relative_to(workdir)
    return str(model_file.relative_to(workdir) if inside else model_file)


def _read_config(workdir: Path) -> dict[str, Any]:
    path = workdir / "config.json"
    try:
        config = read_json(path)
        if not isinstance(config["spec"], dict) or not isinstance(config["data_dir"], str):
            raise ValueError("spec or data_dir is of another type")
        if "\0" in config["data_dir"]:
            raise ValueError(f"data_dir: {shown(config['data_dir'])}: {CONTROL}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a run's configuration: {error}") from None
    return config


def check_workdir(workdir: Path, spec: DataSpec) -> bool:
    """Whether the workdir holds a run of the very same settings; touches nothing.

    Raises:
        InputError: the folder holds a run of other settings (each is named) or something else,
            or cannot be written.
    """
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"--workdir: {workdir}: is a file, not a folder")
    parent = check_writable(workdir, flag="--workdir")
    if not (workdir / "config.json").exists():
        others = _others(workdir) if parent == workdir else []
        if others:
            raise InputError(
                f"--workdir: {workdir}: holds other files ({others[0].name}, …) and no run; "
                "name a new or empty folder"
            )
        return False
    refuse_other_settings(workdir, _read_config(workdir)["spec"], spec.to_dict(), what="run")
    return True


def _others(workdir: Path) -> list[Path]:
    """What lies in a folder without a config.json beside what the start of a run leaves there.

    A start that was stopped leaves hidden files, and those of FOLDERS, in which no file has come
    to its end.
    """
    return [
        path
        for path in sorted(workdir.iterdir())
        if not path.name.startswith(".") and not (path.name in FOLDERS and _is_empty(path))
    ]


def _is_empty(folder: Path) -> bool:
    """Whether there is nothing in a folder but folders and what was never finished."""
    return folder.is_dir() and all(
        LEFTOVER.fullmatch(path.name) or (not path.is_symlink() and _is_empty(path))
        for path in folder.iterdir()
    )


def refuse_other_settings(
    workdir: Path,
    there: dict[str, Any],
    asked: dict[str, Any],
    *,
    what: str,
    flag: str = "--workdir",
) -> None:
    """InputError that names the settings in which `asked` is not what is `there`.

    Args:
        workdir: where they are, for the message.
        there: nested settings.
        asked: the same.
        what: they are of, e.g. `run`.
        flag: that names the folder.
    """
    old, new = flatten(there), flatten(asked)
    changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    if changed:
        first = "; ".join(
            f"{quoted(k)[1:-1]}: {shown(old.get(k))} there, {shown(new.get(k))} asked"
            for k in changed[:4]
        )
        more = f"; and {len(changed) - 4} more" if len(changed) > 4 else ""
        raise InputError(
            f"{flag}: {workdir}: holds a {what} with other settings ({first}{more}); "
            "name another folder, or give the same settings to go on"
        )


def check_same_data(workdir: Path, fingerprint: str) -> None:
    """Raise InputError where a run began with other pictures or labels."""
    before = _read_config(workdir).get("data_fingerprint")
    if before not in (None, fingerprint):
        raise InputError(
            f"--workdir: {workdir}: the pictures or labels have changed since this run began; "
            "name another folder, or put the data back"
        )


def start_run(
    workdir: Path, spec: DataSpec, data_dir: Path, *, fingerprint: str | None = None
) -> Run:
    """Make the workdir with its config.json, or go on with the one that is there.

    config.json comes first: a workdir that has anything else of a run says which run it is.

    Args:
        workdir: the run's folder.
        spec: with the flags' overrides.
        data_dir: what the spec's paths start at.
        fingerprint: of the pictures and labels.
    """
    run = Run(workdir, spec, data_dir)
    write_json(
        workdir / "config.json",
        {
            "data_dir": str(data_dir.resolve()),
            "data_fingerprint": fingerprint,
            "spec_file": spec.source_file,
            # Allowed when the run was made, or it would not be here.
            "allow_outside": any(outside_paths(spec)),
            "versions": package_versions(),
            "spec": spec.to_dict(),
        },
    )
    for folder in (run.models, run.logs):
        folder.mkdir(exist_ok=True)
    for folder in (run.workdir, *(workdir / name for name in FOLDERS)):
        if folder.is_dir():
            clear_leftovers(folder)
    return run


def open_run(workdir: Path, data_dir: Path | None = None, *, allow_outside: bool = False) -> Run:
    """A run that exists, from its workdir alone.

    Args:
        workdir: what `train` was given.
        data_dir: where the data has moved to; None: where it was in training.
        allow_outside: whether the spec's paths may leave the data folder, as they may where
            training allowed it.

    Raises:
        InputError: no such run, or its config.json is broken.
    """
    if not (workdir / "config.json").is_file():
        near = "is no such folder" if not workdir.exists() else "holds no run (no config.json)"
        raise InputError(f"--workdir: {workdir}: {near}; `multitask train` makes one")
    config = _read_config(workdir)
    spec = parse_spec(config["spec"], source=str(workdir / "config.json"))
    refuse_outside(spec, allowed=allow_outside or config.get("allow_outside") is True)
    return Run(workdir, spec, data_dir or Path(config["data_dir"]))
