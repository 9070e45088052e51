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
import json
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multitask import __version__
from multitask.files import check_writable, write_json
from multitask.spec import DataSpec, InputError, parse_spec

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
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config["spec"], dict) or not isinstance(config["data_dir"], str):
            raise ValueError("spec or data_dir is of another type")
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
        ours = (
            [p for p in workdir.iterdir() if not p.name.startswith(".")]
            if parent == workdir
            else []
        )
        if ours:
            raise InputError(
                f"--workdir: {workdir}: holds other files ({ours[0].name}, …) and no run; "
                "name a new or empty folder"
            )
        return False
    refuse_other_settings(workdir, _read_config(workdir)["spec"], spec.to_dict(), what="run")
    return True


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
        shown = "; ".join(f"{k}: {old.get(k)!r} there, {new.get(k)!r} asked" for k in changed[:4])
        more = f"; and {len(changed) - 4} more" if len(changed) > 4 else ""
        raise InputError(
            f"{flag}: {workdir}: holds a {what} with other settings ({shown}{more}); "
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

    Args:
        workdir: the run's folder.
        spec: with the flags' overrides.
        data_dir: what the spec's paths start at.
        fingerprint: of the pictures and labels.
    """
    run = Run(workdir, spec, data_dir)
    for folder in (run.workdir, run.models, run.logs):
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".tmp-*"):  # of a process that was killed while writing
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    write_json(
        workdir / "config.json",
        {
            "data_dir": str(data_dir.resolve()),
            "data_fingerprint": fingerprint,
            "spec_file": spec.source_file,
            "versions": package_versions(),
            "spec": spec.to_dict(),
        },
    )
    return run


def open_run(workdir: Path, data_dir: Path | None = None) -> Run:
    """A run that exists, from its workdir alone.

    Args:
        workdir: what `train` was given.
        data_dir: where the data has moved to; None: where it was in training.

    Raises:
        InputError: no such run, or its config.json is broken.
    """
    if not (workdir / "config.json").is_file():
        near = "is no such folder" if not workdir.exists() else "holds no run (no config.json)"
        raise InputError(f"--workdir: {workdir}: {near}; `multitask train` makes one")
    config = _read_config(workdir)
    spec = parse_spec(config["spec"], source=str(workdir / "config.json"))
    return Run(workdir, spec, data_dir or Path(config["data_dir"]))
