"""Commands in this process."""

import sys
from collections.abc import Callable

import pytest

from service.cli import main
from tests.service.cli.commands import Ran


@pytest.fixture
def equipoise(monkeypatch, capsys) -> Callable[..., Ran]:
    """Run a command in this process."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["equipoise", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return Ran(int(ended.value.code or 0), captured.out, captured.err)

    return run
