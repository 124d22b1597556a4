"""The README tells the truth where that can be checked."""

import re
from pathlib import Path

import pytest
from typer.main import get_command

from service.cli import app
from service.settings import Settings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_its_table_of_settings_lists_every_one_and_no_other():
    listed = re.findall(r"^\| `EQUIPOISE_(\w+)`", README, flags=re.MULTILINE)
    assert sorted(listed) == sorted(name.upper() for name in Settings.model_fields)


def test_the_commands_it_shows_exist():
    shown = set(re.findall(r"^equipoise (\w+)", README, flags=re.MULTILINE))
    assert shown
    assert shown <= set(get_command(app).commands)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_its_links_lead_somewhere(target):
    assert (ROOT / target).exists()
