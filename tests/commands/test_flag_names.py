"""Library errors name arguments and fields of the spec; a command's errors name its flags."""

import pytest
from absl import flags

from multitask.__main__ import main
from multitask.commands.spec_flags import define_records_dir, define_spec_flags, with_flags

SPEC = """
name = "s"
images = "."
image_size = 32

[trunk]
name = "efficientnetb2"
weights = "none"
schedule = {kind = "constant", rate = 0.1}

[table]
file = "t.csv"
image = "file"
split = "set"

[[task]]
name = "style"
column = "style"
head = {kind = "linear"}
loss = {kind = "focal"}
schedule = {kind = "constant", rate = 0.1}
freeze_depth = 0
"""


@pytest.fixture
def values():
    values = flags.FlagValues()
    define_spec_flags(values)
    define_records_dir(values)
    values(["multitask"])
    return values


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("name another `records_dir`", "name another --records_dir"),
        ("set `features.cache=off`, then", "set --cache_features=off, then"),
        ("`phases.finetune.cache=off`", "--cache_finetune=off"),
        ("with `max_missing=0.25`.", "with --max_missing=0.25."),
        ("`trunk.name=efficientnet_lite2` (its", "--trunk=efficientnet_lite2 (its"),
        ("run `multitask evaluate`, or `resume`", "run `multitask evaluate`, or `resume`"),
    ],
)
def test_settings_become_flags_where_the_command_has_them(values, text, named):
    assert with_flags(text, values) == named


def test_a_wrong_field_is_named_with_its_spec(tmp_path, capsys):
    spec = tmp_path / "s.toml"
    spec.write_text(SPEC)
    (tmp_path / "t.csv").write_text("file,style\na.jpg,x\nb.jpg,y\n")
    argv = [f"--spec={spec}", f"--data_dir={tmp_path}", f"--out={tmp_path / 'out'}"]
    with pytest.raises(SystemExit) as stopped:
        main(["audit", *argv])
    assert stopped.value.code == 2
    wrong = 'table.split: unknown column "set". Expected one of: file, style.'
    assert capsys.readouterr().err == f"{spec}: {wrong}\n"
