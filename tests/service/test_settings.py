from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import Settings, cpu_quota


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUIPOISE_PORT", "9000")
    monkeypatch.setenv("EQUIPOISE_STATE_DIR", "/somewhere/else")
    settings = Settings()
    assert settings.port == 9000
    assert settings.resolved_database_url == "sqlite:////somewhere/else/equipoise.db"
    assert settings.resolved_artifacts_url == "file:///somewhere/else/artifacts"


def test_urls_replace_what_lies_in_the_state_folder() -> None:
    settings = Settings(database_url="postgresql://host/db", artifacts_url="s3://bucket/path")
    assert settings.resolved_database_url == "postgresql://host/db"
    assert settings.resolved_artifacts_url == "s3://bucket/path"


@pytest.mark.parametrize("wrong", [{"port": 70000}, {"model_threads": 0}, {"max_body_bytes": 0}, {"prot": 8000}])
def test_a_setting_out_of_range_or_unknown_is_refused(wrong: dict) -> None:
    with pytest.raises(ValidationError):
        Settings(**wrong)


@pytest.mark.parametrize(
    ("files", "threads"),
    [
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, 4),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "9900000 100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({}, 4),
        ({"cpu.max": "nonsense"}, 4),
    ],
)
def test_threads_follow_the_quota_of_the_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], threads: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1, 2, 3})
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu_quota(tmp_path) == threads
