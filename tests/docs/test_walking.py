import pytest

from tests.docs.walking import Step, differs, steps

CAME = '{"name":"pets","revision":3,"score":0.8049,"more":[1,2]}'


@pytest.mark.parametrize("shown", [CAME, '{"name": "pets",\n "revision": 3, ...}', '{... "score": 0.80, ...}', "..."])
def test_shown_text_may_leave_out_and_round(shown: str) -> None:
    assert differs(shown, CAME) is None


@pytest.mark.parametrize(
    "shown",
    [
        '{"name": "pest", ...}',
        '{... "revision": 4, ...}',
        '{... "score": 0.81, ...}',
        '{"name": "pets"}',
        "{... [2,1]}",
    ],
)
def test_a_shown_text_that_did_not_come_is_told(shown: str) -> None:
    assert differs(shown, CAME)


def test_slack_is_for_figures_alone() -> None:
    assert differs('{... "score": 0.83, ...}', CAME, slack=0.05) is None
    assert differs('{... "score": 0.87, ...}', CAME, slack=0.05)
    assert differs('{... "revision": 4, ...}', CAME, slack=0.5)


def test_python_blocks_are_files_and_console_blocks_commands() -> None:
    document = "```python\n# a.py\nx\n```\ntext\n```sh\nnot run\n```\n```console\n$ one \\\n  more\nshown\n$ two\n```\n"
    assert list(steps(document)) == [
        Step(file="a.py", shown="# a.py\nx\n"),
        Step(command="one \\\n  more", shown="shown\n"),
        Step(command="two"),
    ]
