"""What tests of refused commands share: exit status and the one line on stderr."""

import pytest

from multitask.__main__ import main


def stopped(capsys, *argv):
    """(status, the one line on stderr) of a command that fails."""
    with pytest.raises(SystemExit) as caught:
        main([str(one) for one in argv])
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.endswith("\n")
    return caught.value.code, err.rstrip("\n")


def names_in(folder):
    """All files below a folder, but locks."""
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith(".lock")
    )


def in_one_line(capsys, *argv, status=2):
    """(the one line on stderr, stdout) of a command that fails with this status."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in argv])
    out, err = capsys.readouterr()
    assert stopped.value.code == status
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert err.isprintable() or err[:-1].isprintable()
    assert len(err) < 2000
    return err, out
