"""Keys: who gets in, what the file keeps, and what happens while it is changed."""

import json
import logging
import os
import resource
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from service.errors import CannotStart, MissingKey, ServiceError, WrongScope
from service.keys import Keys, changing, new_key, read_keys
from service.server import listen
from service.settings import Settings
from tests.service.processes import eventually


def bearer(key: str) -> bytes:
    return f"Bearer {key}".encode()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def make(path: Path) -> Callable[..., str]:
    def add(name: str, scope: str = "score") -> str:
        entry, key = new_key(name, scope)
        with changing(path) as keys:
            keys.append(entry)
        return key

    return add


@pytest.fixture
def ada(make: Callable[..., str]) -> str:
    return make("ada")


def remove_all(path: Path) -> None:
    with changing(path) as keys:
        keys.clear()


@contextmanager
def limited(kind: int) -> Iterator[None]:
    """This process may have nothing more of it."""
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))


def is_in(keys: Keys, key: str) -> bool:
    try:
        return bool(keys.check(bearer(key), "score"))
    except MissingKey:
        return False


class TestCheck:
    def test_gives_the_name_of_the_key(self, path: Path, ada: str, make: Callable[..., str]) -> None:
        bob = make("bob", "manage")
        keys = Keys(path)
        assert keys.check(bearer(ada), "score") == "ada"
        assert keys.check(bearer(bob), "manage") == "bob"

    def test_a_key_that_manages_scores_too_and_not_the_other_way_round(
        self, path: Path, ada: str, make: Callable[..., str]
    ) -> None:
        bob = make("bob", "manage")
        assert Keys(path).check(bearer(bob), "score") == "bob"
        with pytest.raises(WrongScope, match="scope manage; 'ada' has the scope score"):
            Keys(path).check(bearer(ada), "manage")

    def test_the_word_bearer_is_read_in_any_case(self, path: Path, ada: str) -> None:
        assert Keys(path).check(f"bearer {ada}".encode(), "score") == "ada"

    def test_without_a_key_the_way_to_send_one_is_told(self, path: Path, ada: str) -> None:
        with pytest.raises(MissingKey, match=r"none came.*Authorization: Bearer KEY"):
            Keys(path).check(b"", "score")

    @pytest.mark.parametrize("value", ["KEY", "Basic KEY", "Token KEY", "Bearer", "BearerKEY"])
    def test_the_key_alone_or_after_another_word_is_not_enough(self, path: Path, ada: str, value: str) -> None:
        with pytest.raises(MissingKey, match="without the word Bearer"):
            Keys(path).check(value.replace("KEY", ada).encode(), "score")

    def test_a_key_that_is_almost_right_is_wrong(self, path: Path, ada: str, make: Callable[..., str]) -> None:
        bob, (_, unknown) = make("bob"), new_key("ada", "score")
        swapped = ada[:13] + bob[13:]
        other = "A" if ada[-2] != "A" else "B"
        changed = f"{ada[:-2]}{other}{ada[-1]}"
        digest = ada[:13] + read_keys(path)[0].sha256  # what somebody reads who sees the file
        wrong = [swapped, changed, digest, unknown, ada[:-1], f"{ada}A", f" {ada}", ada[4:], ada[:13], "eqk_", "", "\0"]
        wrong += [f"EQK_{ada[4:]}", f"{ada[:12]}-{ada[13:]}", ada.replace(ada[4:12], "\xff" * 8), "eqk_" + "_" * 9]
        keys = Keys(path)
        assert [key for key in wrong if is_in(keys, key)] == []
        assert is_in(keys, ada)

    def test_a_refusal_does_not_repeat_what_came(self, path: Path, ada: str) -> None:
        for value in (ada, f"Bearer {ada}x", f"Basic {ada}"):
            with pytest.raises(MissingKey) as refused:
                Keys(path).check(value.encode(), "score")
            assert ada[13:] not in str(refused.value)


class TestFile:
    def test_keeps_the_hash_and_not_the_secret(self, path: Path, ada: str) -> None:
        (kept,) = json.loads(path.read_text())
        assert set(kept) == {"id", "name", "scopes", "sha256", "created_at"}
        assert (kept["id"], kept["name"], kept["scopes"]) == (ada[4:12], "ada", ["score"])
        assert ada[13:] not in path.read_text()

    def test_only_its_owner_may_read_it(self, path: Path, ada: str, make: Callable[..., str]) -> None:
        path.chmod(0o644)
        make("bob")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
    def test_it_stays_with_its_owner_when_root_changes_it(self, path: Path, ada: str, make: Callable[..., str]) -> None:
        os.chown(path, 12345, 12346)
        make("bob")
        assert (path.stat().st_uid, path.stat().st_gid) == (12345, 12346)

    def test_whoever_reads_it_during_a_change_has_it_whole(self, path: Path, ada: str, make: Callable) -> None:
        before = path.read_text()
        with path.open() as opened:
            make("bob")
            assert opened.read() == before
        assert len(read_keys(path)) == 2

    def test_a_change_that_fails_leaves_it_as_it_was(self, path: Path, ada: str) -> None:
        before = path.read_text()
        with pytest.raises(IndexError), changing(path) as keys:
            del keys[0], keys[0]
        assert path.read_text() == before
        assert list(path.parent.iterdir()) == [path]

    def test_a_full_disk_leaves_it_as_it_was_and_no_left_overs(self, path: Path, ada: str) -> None:
        with limited(resource.RLIMIT_FSIZE), pytest.raises(ServiceError, match="cannot be written"):
            remove_all(path)
        assert len(read_keys(path)) == 1
        assert list(path.parent.iterdir()) == [path]

    def test_changes_at_the_same_time_are_all_kept(self, path: Path, make: Callable[..., str]) -> None:
        threads = [threading.Thread(target=make, args=(f"client {number}",)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(key.name for key in read_keys(path)) == sorted(f"client {number}" for number in range(16))

    def test_a_link_to_it_stays_a_link(self, tmp_path: Path, path: Path, ada: str) -> None:
        link = tmp_path / "link.json"
        link.symlink_to(path)
        remove_all(link)
        assert link.is_symlink()
        assert read_keys(path) == []

    def test_one_that_cannot_be_read_is_not_written_over(self, path: Path) -> None:
        path.write_text("[")
        with pytest.raises(CannotStart, match="not a list of keys"):
            remove_all(path)
        assert path.read_text() == "["

    def test_a_folder_that_is_not_there_is_said(self, tmp_path: Path) -> None:
        with pytest.raises(ServiceError, match="cannot be written: No such file or directory"):
            remove_all(tmp_path / "nowhere" / "keys.json")

    @pytest.mark.parametrize("name", ["", "a" * 101, "two\nlines", "\x1b[31mred", "\udcff"])
    def test_a_name_that_cannot_stand_in_a_log_is_refused(self, name: str) -> None:
        with pytest.raises(ServiceError, match="1 to 100 characters"):
            new_key(name, "score")


class TestStart:
    def test_with_keys_it_may_listen_everywhere(self, path: Path) -> None:
        listen(Settings(host="0.0.0.0", port=0, keys_file=path)).close()

    def test_without_the_file_the_command_is_named_that_makes_one(self, path: Path) -> None:
        with pytest.raises(CannotStart, match=f"equipoise keys create NAME --scope score --file {path}"):
            Keys(path)

    def test_an_empty_list_lets_nobody_in(self, path: Path, ada: str) -> None:
        remove_all(path)
        assert not is_in(Keys(path), ada)

    @pytest.mark.parametrize(
        ("spoil", "why"),
        [
            (lambda entry: [], "0: Input should be an object"),
            (lambda entry: entry | {"scopes": []}, "0.scopes"),
            (lambda entry: entry | {"scopes": ["all"]}, "0.scopes.0"),
            (lambda entry: entry | {"sha256": entry["sha256"][:-1]}, "0.sha256"),
            (lambda entry: entry | {"id": "1234567G"}, "0.id"),
            (lambda entry: entry | {"secret": "x"}, "0.secret"),
            (lambda entry: {"name": "ada"}, "0.id"),
        ],
    )
    def test_a_list_of_something_else_says_where(self, path: Path, ada: str, spoil: Callable, why: str) -> None:
        path.write_text(json.dumps([spoil(json.loads(path.read_text())[0])]))
        with pytest.raises(CannotStart, match=rf"not a list of keys: .*{why}"):
            Keys(path)

    def test_an_id_that_stands_twice_is_refused(self, path: Path, ada: str) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) * 2))
        with pytest.raises(CannotStart, match="an id more than once"):
            Keys(path)


class TestChanges:
    def test_are_taken_over_while_it_runs(self, path: Path, ada: str, make: Callable[..., str]) -> None:
        keys = Keys(path)
        keys.start()
        try:
            bob = make("bob")
            eventually(lambda: is_in(keys, bob), seconds=30)
            remove_all(path)
            eventually(lambda: not is_in(keys, ada), seconds=30)
            assert not is_in(keys, bob)
        finally:
            keys.stop()
        assert "keys" not in {thread.name for thread in threading.enumerate()}

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda path: path.write_text(path.read_text()[:-20]),
            lambda path: path.write_text(""),
            lambda path: path.write_bytes(b"\xff\xfe"),
            lambda path: path.unlink(),
            lambda path: (path.unlink(), path.mkdir()),
        ],
        ids=["half", "empty", "no text", "gone", "folder"],
    )
    def test_that_spoil_the_file_leave_the_keys_and_are_said_once(
        self, path: Path, ada: str, spoil: Callable, caplog: pytest.LogCaptureFixture
    ) -> None:
        keys, whole = Keys(path), path.read_text()
        spoil(path)
        for _ in range(3):
            keys.look()
        assert is_in(keys, ada)
        (said,) = keys.degraded()
        assert "keys from before are in force" in said
        assert str(path) not in said  # everybody may read it
        assert [each.levelno for each in caplog.records] == [logging.ERROR]
        assert str(path) in caplog.text
        if path.is_dir():
            path.rmdir()
        path.write_text(whole)
        keys.look()
        assert keys.degraded() == []
        assert is_in(keys, ada)

    def test_that_could_not_be_read_for_a_moment_are_read_later(
        self, path: Path, ada: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        keys = Keys(path)
        remove_all(path)
        with limited(resource.RLIMIT_NOFILE):
            keys.look()
            assert len(keys.degraded()) == 1
        assert "Too many open files" in caplog.text
        keys.look()
        assert not is_in(keys, ada)
        assert keys.degraded() == []

    def test_each_that_spoils_it_is_said(self, path: Path, ada: str, caplog: pytest.LogCaptureFixture) -> None:
        keys = Keys(path)
        for text in ("[", "[[", "{}"):
            path.write_text(text)
            keys.look()
        assert len(caplog.records) == 3

    def test_that_make_the_list_empty_are_no_fault(self, path: Path, ada: str) -> None:
        keys = Keys(path)
        remove_all(path)
        keys.look()
        assert not is_in(keys, ada)
        assert keys.degraded() == []
