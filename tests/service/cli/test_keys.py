"""The commands for keys as a user meets them: from the first key to the last one revoked."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from service.cli import main
from service.errors import MissingKey
from service.keys import Keys, KeyScope, read_keys

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `equipoise keys` in this process: the exit code, standard output, standard error."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("EQUIPOISE_KEYS_FILE", raising=False)

    def command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["equipoise", "keys", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return command


@pytest.fixture
def path(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of the file that the setting names."""
    monkeypatch.setenv("EQUIPOISE_KEYS_FILE", str(tmp_path / "keys.json"))
    return tmp_path / "keys.json"


def owner(path: Path, key: str, scope: KeyScope) -> str:
    return Keys(path).check(f"Bearer {key}".encode(), scope)


def test_create_prints_the_key_alone_so_that_it_can_be_piped(run: Run, path: Path) -> None:
    code, out, err = run("create", "ada", "--scope", "score")
    assert code == 0, err
    assert re.fullmatch(r"eqk_[0-9a-f]{8}_[A-Za-z0-9_-]{43}\n", out)
    assert owner(path, out.strip(), "score") == "ada"
    assert "not shown again" in err
    assert out.strip()[13:] not in err


def test_a_key_may_only_score_unless_more_is_asked_for(run: Run, path: Path) -> None:
    run("create", "ada")
    run("create", "bob", "--scope", "manage")
    assert [(key.name, key.scopes) for key in read_keys(path)] == [("ada", ("score",)), ("bob", ("manage",))]
    assert run("create", "eve", "--scope", "everything")[0] == 2


def test_a_revoked_key_lets_nobody_in_and_the_others_stay(run: Run, path: Path) -> None:
    ada, bob = (run("create", name)[1].strip() for name in ("ada", "bob"))
    code, out, _ = run("revoke", ada[4:12])
    assert (code, "revoked" in out) == (0, True)
    with pytest.raises(MissingKey):
        owner(path, ada, "score")
    assert owner(path, bob, "score") == "bob"


def test_an_unknown_id_is_refused_with_those_there_are(run: Run, path: Path) -> None:
    ada = run("create", "ada")[1]
    code, _, err = run("revoke", "00000000")
    assert code == 1
    assert "'00000000'" in err
    assert ada[4:12] in err
    assert len(read_keys(path)) == 1


def test_list_shows_every_key_without_its_secret(run: Run, path: Path) -> None:
    made = [run("create", name, "--scope", "manage")[1].strip() for name in ("ada", "[red]bob")]
    code, out, _ = run("list")
    assert code == 0
    for key, name in zip(made, ("ada", "[red]bob"), strict=True):
        assert re.search(rf"{key[4:12]}\W+{re.escape(name)}\W+manage\W+20\d\d-", out)
        assert key[13:] not in out
    assert not any(entry.sha256 in out for entry in read_keys(path))


def test_a_file_that_is_named_goes_before_the_setting(run: Run, path: Path, tmp_path: Path) -> None:
    assert run("create", "ada", "--file", tmp_path / "other.json")[0] == 0
    assert not path.exists()
    assert "ada" in run("list", "--file", tmp_path / "other.json")[1]


def test_without_a_file_it_says_how_to_name_one(run: Run) -> None:
    code, out, err = run("create", "ada")
    assert (code, out) == (1, "")
    assert "EQUIPOISE_KEYS_FILE" in err


def test_a_key_that_could_not_be_kept_is_not_shown(run: Run, tmp_path: Path) -> None:
    code, out, err = run("create", "ada", "--file", tmp_path / "nowhere" / "keys.json")
    assert (code, out) == (1, "")
    assert "cannot be written" in err
