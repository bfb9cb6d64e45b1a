"""The error line of a command that cannot do what its arguments say."""

import pytest


def error_line(capsys, main, *arguments):
    """Call ``main`` of a command, which has to exit with an error; return (exit code, the only line it printed)."""
    capsys.readouterr()  # drop what earlier calls printed
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("\n") and err.count("\n") == 1, err
    return caught.value.code, err[:-1]
