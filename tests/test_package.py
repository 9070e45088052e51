"""The wheel and the source distribution, installed outside of the checkout and used."""

import configparser
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
USE = """
import multitask as mt
from multitask.pages.render import render
from multitask.spec import shipped_specs

assert mt.__file__.startswith(r"{environment}"), mt.__file__
assert {{"demo", "wikiart", "wikiart_lite"}} <= set(shipped_specs())
print(mt.__version__, mt.load_spec("wikiart", image_size=300).task_names)
try:
    mt.load_spec("nothing")
except mt.InputError as error:
    print(error)
"""


def run(*command, cwd):
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The files that git has, as a user gets them."""
    folder = tmp_path_factory.mktemp("source")
    names = run("git", "ls-files", "-z", cwd=ROOT).split("\0")[:-1]
    for name in names:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    return folder


@pytest.fixture(scope="module")
def sdist(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("sdist")
    code = f"import setuptools.build_meta as b; b.build_sdist({str(out)!r})"
    run(sys.executable, "-c", code, cwd=source)
    (file,) = out.glob("multitask_paintings-*.tar.gz")
    return file


def test_every_package_is_in_the_wheel():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = config["options"]["packages"].split()
    inits = (ROOT / "multitask").rglob("__init__.py")
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in inits}
    assert set(listed) == folders | {"multitask.data_specs"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_an_installed_package(kind, source, sdist, tmp_path):
    environment = tmp_path / "environment"
    run(sys.executable, "-m", "venv", environment, cwd=tmp_path)
    python = environment / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = Path(run(python, "-c", code, cwd=tmp_path).strip())
    # The dependencies are those of the tests; a .pth file does not make the checkout importable.
    (own / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    what = source if kind == "wheel" else sdist
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    run(python, "-m", "pip", "install", *options, what, cwd=tmp_path)
    out = run(python, "-c", USE.format(environment=environment), cwd=tmp_path)
    assert out.startswith("0.2.0 ('artist', 'style', 'genre')\n")
    assert 'spec: no spec called "nothing"' in out
    console = environment / "bin" / "multitask"
    assert run(console, "--version", cwd=tmp_path) == "0.2.0\n"
    assert "--validation_share" in run(console, "train", "--help", cwd=tmp_path)
    run(python, "-m", "pip", "check", cwd=tmp_path)
    data = tmp_path / "data"
    done = subprocess.run(
        [console, "audit", "--spec=demo", f"--data_dir={data}"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
