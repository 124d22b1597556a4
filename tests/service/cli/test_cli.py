"""The command line as a user meets it: what it prints, and its exit codes."""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.service.cli.commands import image_file
from training import runs

ROOT = Path(__file__).parents[3]
COMMANDS = ("train", "recipes", "fit", "evaluate", "report", "export", "import", "serve", "score", "demo")


def figures(text: str, bar: str) -> list[tuple[str, list[float]]]:
    """The rows of a table that end in six numbers: network and calibration in short, and the numbers."""
    found = []
    for line in text.splitlines():
        name, *cells = [cell.strip() for cell in line.strip().strip(bar).split(bar)]
        numbers = [float(cell) for cell in cells if re.fullmatch(r"[\d.]+", cell)]
        if len(numbers) == 6:
            words = re.findall(r"[a-z]+", name.casefold().replace("closed-form", "closed form"))
            found.append((" ".join(words[:3] if words[2] != "closed" else words[:4]), numbers))
    return found


def interrupted(epoch: int, epochs: int, loss: float) -> None:
    raise KeyboardInterrupt


class TestHelp:
    def test_lists_every_command(self, equipoise):
        ran = equipoise("--help")
        assert ran.code == 0
        assert all(command in ran.out for command in COMMANDS)
        assert "Exit codes" in ran.out

    @pytest.mark.parametrize("command", COMMANDS)
    def test_of_each_command(self, equipoise, command):
        ran = equipoise(command, "--help")
        assert ran.code == 0
        assert "Usage: equipoise" in ran.out

    def test_wrong_usage_is_exit_code_2(self, equipoise):
        assert equipoise("train", "--no-such-option").code == 2
        assert equipoise("fly").code == 2


class TestTheWayOfAModel:
    def test_on_digits(self, equipoise, tmp_path):
        run, bundle, image = tmp_path / "run", tmp_path / "digits", image_file(tmp_path / "image.png", 8, 8)
        trained = equipoise("train", "--out", run, "--epochs", 2)
        assert trained.code == 0, trained.err
        assert f"equipoise fit {run}" in trained.out.replace("\n", "")
        before = equipoise("evaluate", run)
        assert "raw" in before.out
        assert "debiased" not in before.out
        assert "closed-form" in equipoise("fit", run, "--method", "closed-form").out
        assert "debiased" in equipoise("evaluate", run).out
        reported = equipoise("report", run, "--out", tmp_path / "report.html")
        assert reported.code == 0, reported.err
        assert "closed-form" in (tmp_path / "report.html").read_text()
        exported = equipoise("export", run, "--out", bundle)
        assert exported.code == 0, exported.err
        assert json.loads((bundle / "manifest.json").read_text())["name"] == "digits"
        scored = equipoise("score", bundle, image, "--top-k", 10)
        assert all(f" {digit} " in scored.out for digit in range(10))

    def test_recipes_are_listed_with_what_they_train(self, equipoise):
        listed = equipoise("recipes").out
        assert (
            "cifar100_lt_r100_balms\n    cifar100 ratio 100; resnet32, linear head; cross-entropy, then Meta" in listed
        )
        assert "imagenet-lt" in listed
        assert "not run by this project" in listed

    def test_options_change_what_is_trained(self, equipoise, tmp_path):
        options = ("--norm", "nbn", "--head", "cosine", "--cibl-alpha", 0.1, "--precision", "bfloat16", "--seed", 3)
        trained = equipoise("train", "--out", tmp_path / "run", "--epochs", 1, *options)
        assert trained.code == 0, trained.err
        training = json.loads((tmp_path / "run" / "config.json").read_text())["training"]
        assert (training["architecture"]["norm"], training["architecture"]["head"]) == ("nbn", "cosine")
        assert (training["cibl"]["alpha"], training["precision"], training["seed"]) == (0.1, "bfloat16", 3)

    def test_a_recipe_on_other_data_with_another_budget(self, equipoise, tmp_path):
        recipe = ("--recipe", "cifar100_lt_r100_bs_short", "--backbone", "small", "--data", "digits")
        trained = equipoise("train", "--out", tmp_path / "run", "--epochs", 1, *recipe)
        assert trained.code == 0, trained.err
        training = json.loads((tmp_path / "run" / "config.json").read_text())["training"]
        assert (training["loss"], training["augmentation"]["cutout"]) == ("balanced-softmax", 16)
        assert (tmp_path / "run" / "logits_train.npz").exists()

    def test_an_unknown_recipe_names_its_neighbours(self, equipoise, tmp_path):
        ran = equipoise("train", "--out", tmp_path / "run", "--recipe", "cifar100_lt")
        assert ran.code == 1
        assert "equipoise recipes" in ran.err.replace("\n", " ")

    def test_a_training_that_was_stopped_goes_on(self, equipoise, tmp_path):
        with pytest.raises(KeyboardInterrupt):
            runs.train_run("digits", out=tmp_path / "run", epochs=3, seed=0, progress=interrupted)
        assert equipoise("train", "--out", tmp_path / "run", "--epochs", 3).code == 0
        assert "going on" in (tmp_path / "run" / "log.txt").read_text()

    def test_refuses_to_overwrite(self, equipoise, tmp_path):
        ran = equipoise("train", "--out", tmp_path)
        assert ran.code == 1
        assert "not overwritten" in ran.err

    @pytest.mark.parametrize("command", [("fit",), ("evaluate",), ("export", "--out", "b")])
    def test_a_step_before_training_says_what_to_do(self, equipoise, tmp_path, command):
        ran = equipoise(command[0], tmp_path / "nothing", *command[1:])
        assert ran.code == 1
        assert "equipoise train" in ran.err.replace("\n", " ")

    def test_data_that_are_not_there(self, equipoise, tmp_path):
        ran = equipoise("train", "--data", tmp_path / "none.npz", "--out", tmp_path / "run")
        assert ran.code == 1
        assert "none.npz" in ran.err
        assert not (tmp_path / "run").exists()


class TestImport:
    @pytest.fixture
    def files(self, tmp_path):
        (tmp_path / "classes.txt").write_text("ant\nbee\ncat\n")
        (tmp_path / "counts.csv").write_text("class,count\nbee,20\nant,100\ncat,3\n")
        return ["--name", "bugs", "--classes", tmp_path / "classes.txt", "--counts", tmp_path / "counts.csv"]

    def test_of_a_model_that_is_sent_logits(self, equipoise, files, tmp_path):
        ran = equipoise("import", *files, "--trained-with", "cross-entropy", "--out", tmp_path / "bundle")
        assert ran.code == 0, ran.err
        manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
        assert manifest["ledger"]["class_counts"] == [100, 20, 3]
        assert manifest["input"] is None
        scored = equipoise("score", tmp_path / "bundle", image_file(tmp_path / "image.png"))
        assert scored.code == 1
        assert "no network" in scored.err

    def test_of_an_unknown_training_needs_labelled_logits(self, equipoise, files, tmp_path):
        ran = equipoise("import", *files, "--trained-with", "unknown", "--out", tmp_path / "bundle")
        assert ran.code == 1
        assert "Give the option logits" in ran.err.replace("\n", " ")
        labels = np.arange(30) % 3
        np.savez(tmp_path / "labelled.npz", logits=np.eye(3)[labels] * 3, labels=labels)
        logits = ["--logits", tmp_path / "labelled.npz"]
        assert equipoise("import", *files, *logits, "--trained-with", "unknown", "--out", tmp_path / "bundle").code == 0

    def test_does_not_take_probabilities_for_logits(self, equipoise, files, tmp_path):
        labels = np.arange(300) % 3
        logits = 2 * np.eye(3)[labels] + np.random.default_rng(0).normal(size=(300, 3))
        probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        np.savez(tmp_path / "labelled.npz", logits=probs.astype(np.float32), labels=labels)
        options = ["--logits", tmp_path / "labelled.npz", "--trained-with", "balanced-sampling"]
        ran = equipoise("import", *files, *options, "--out", tmp_path / "bundle")
        assert ran.code == 1
        assert "Say output_kind=probabilities" in ran.err.replace("\n", " ")
        said = equipoise("import", *files, *options, "--out", tmp_path / "said", "--output-kind", "probabilities")
        np.savez(tmp_path / "labelled.npz", logits=logits, labels=labels)
        as_logits = equipoise("import", *files, *options, "--out", tmp_path / "logits")
        assert said.code == as_logits.code == 0, said.err
        scales = [
            json.loads((tmp_path / name / "manifest.json").read_text())["calibration"]["scale"]
            for name in ("said", "logits")
        ]
        np.testing.assert_allclose(*scales, rtol=1e-3)  # float32 probabilities
        assert "by class-balanced NLL over 5 folds" in as_logits.out.replace("\n", " ")

    def test_refuses_training_logits(self, equipoise, files, tmp_path):
        np.savez(tmp_path / "seen.npz", logits=2 * np.eye(3), labels=np.arange(3), split="train")
        options = ["--logits", tmp_path / "seen.npz", "--trained-with", "cross-entropy", "--out", tmp_path / "bundle"]
        ran = equipoise("import", *files, *options)
        assert ran.code == 1
        assert "seen.npz holds training logits" in ran.err.replace("\n", " ")

    def test_warns_where_the_labelled_logits_contradict_the_training_that_was_named(self, equipoise, files, tmp_path):
        labels = np.arange(300) % 3
        noise = np.random.default_rng(0).normal(size=(300, 3))  # of a classifier that favours no class
        np.savez(tmp_path / "labelled.npz", logits=2 * np.eye(3)[labels] + noise, labels=labels)
        options = ["--logits", tmp_path / "labelled.npz", "--trained-with", "cross-entropy"]
        ran = equipoise("import", *files, *options, "--out", tmp_path / "bundle")
        assert ran.code == 0, ran.err
        assert "warning: the labelled examples speak against" in ran.out.replace("\n", " ") + ran.err.replace("\n", " ")

    def test_says_what_is_wrong_with_the_counts(self, equipoise, files, tmp_path):
        (tmp_path / "counts.csv").write_text("ant,1\nbeee,2\ncat,3\n")
        ran = equipoise("import", *files, "--trained-with", "cross-entropy", "--out", tmp_path / "bundle")
        assert ran.code == 1
        assert "Did you mean 'bee'" in ran.err.replace("\n", " ")

    @pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut off"])
    def test_logits_that_cannot_be_read(self, equipoise, files, tmp_path, content):
        (tmp_path / "labelled.npz").write_bytes(content)
        options = ["--logits", tmp_path / "labelled.npz", "--trained-with", "unknown", "--out", tmp_path / "bundle"]
        ran = equipoise("import", *files, *options)
        assert ran.code == 1
        assert "must be an .npz" in ran.err.replace("\n", " ")

    @pytest.mark.parametrize("option", [("--size", "32"), ("--size", "axb"), ("--mean", "0.5")])
    def test_numbers_that_are_none_are_wrong_usage(self, equipoise, files, tmp_path, option):
        ran = equipoise("import", *files, "--trained-with", "cross-entropy", "--out", tmp_path / "bundle", *option)
        assert ran.code == 2


def test_without_torch_the_training_commands_name_the_extra(tmp_path):
    probe = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['equipoise', 'train', '--out', sys.argv[1]]; "
        "from service.cli import main; main()"
    )
    ran = subprocess.run([sys.executable, "-c", probe, str(tmp_path / "run")], capture_output=True, text=True)
    assert ran.returncode == 1
    assert "equipoise[train]" in ran.stderr.replace("\n", "")


def _curl(line):
    """What a curl line of the demonstration does, without curl: every one is a POST, with a file or with nothing."""
    *options, url = shlex.split(line)[1:]
    files = [option.removeprefix("@") for option in options if option.startswith("@")]
    headers = {"Content-Type": "application/x-www-form-urlencoded"}  # curl's own, whatever the file is
    transport = httpx.HTTPTransport(retries=10)  # with a growing pause: the server may not listen yet
    with httpx.Client(transport=transport, headers=headers, timeout=30.0) as client:
        answer = client.post(url, content=Path(files[0]).read_bytes() if files else b"")
    return answer.raise_for_status().json()


class TestDemo:
    def test_once_runs_the_whole_way_over_http(self, tmp_path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "service", "demo", "--once", "--folder", str(tmp_path / "demo")]
        ran = subprocess.run([*command, "--port", str(port)], capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert ran.stdout.count("\nok ") == 5
        shown = dict(figures(ran.stdout, "│"))
        for row, documented in figures((ROOT / "README.md").read_text().partition("Then it exports")[0], "|"):
            # another processor may decide an image or two of 400 otherwise
            assert documented == pytest.approx(shown[row], abs=2.0), f"the README's row {row}"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=2)

    def test_a_port_in_use_is_said_before_anything_is_trained(self, equipoise, tmp_path):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            ran = equipoise("demo", "--folder", tmp_path / "demo", "--port", taken.getsockname()[1])
        assert ran.code == 1
        assert "cannot listen" in ran.err
        assert not (tmp_path / "demo").exists()

    def test_in_the_foreground_prints_lines_that_work_and_serves(self, tmp_path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "service", "demo", "--folder", str(tmp_path / "demo"), "--port", str(port)]
        patient = os.environ | {"EQUIPOISE_JOB_WAIT_SECONDS": "60"}  # a busy machine is late with the upload
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": patient}
        with subprocess.Popen(command, **options) as process:
            try:
                lines = iter(process.stdout.readline, "")
                shown = list(takewhile(lambda line: "INFO" not in line, lines))
                answers = [_curl(line) for line in shown if line.startswith("  curl")]
            finally:
                process.terminate()
                process.communicate(timeout=30)
        assert len(answers) == 4
        assert "top" in answers[0]["results"][0]
        assert answers[1]["active"]["prior"] == answers[2]["prior"]["name"] != "uniform"
        assert answers[3]["active"]["prior"] == "uniform"
        assert process.returncode in (0, -15)

    def test_does_not_empty_a_folder_of_somebody_else(self, equipoise, tmp_path):
        (tmp_path / "thesis.txt").write_text("years of work")
        ran = equipoise("demo", "--once", "--folder", tmp_path)
        assert ran.code == 1
        assert "holds other things" in ran.err
        assert (tmp_path / "thesis.txt").exists()
