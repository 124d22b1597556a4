"""Start an unpacked image's own command as a container engine would, talk to it, and check what it did.

Called by check-image.sh, as root, inside fresh mount, network and process namespaces. The command runs with the image's
user, environment and folder, and with the limits of docker-compose.yml: no capabilities, no new privileges, a tmpfs on
/tmp. It is started three times on one volume: on a writable file tree, to see that it writes nothing outside the
volume; then on a read-only one, with the bundle as after any restart and without it, to see that no upload is lost.
"""

import argparse
import fcntl
import io
import json
import os
import re
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from rich.console import Console

START_SECONDS = 60.0
STOP_SECONDS = 10.0  # a container engine kills after that long
DEVICES = {"null": (1, 3), "zero": (1, 5), "random": (1, 8), "urandom": (1, 9)}
NOT_FOR_SERVING = ("torch", "onnxscript", "sklearn", "hatchling", "pip")
FIND_MODULES = "import importlib.util as u, sys; print(*filter(u.find_spec, sys.argv[1:]))"

console = Console(highlight=False, soft_wrap=True)


class CheckFailed(Exception):
    """The image does not do what it should."""


def check(passed: bool, what: str) -> None:
    console.print("ok    " if passed else "FAILED", what, markup=False)
    if not passed:
        raise CheckFailed(what)


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """An image's file tree, mounted at `root` with everything an engine adds, and its configuration."""

    root: Path
    config: dict[str, Any]

    def start(self, command: list[str], **options: Any) -> subprocess.Popen[str]:
        """Any command inside, as the image's user and without privileges."""
        user, group = self.config["User"].split(":")
        drop = ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", "--no-new-privs", "--inh-caps=-all"]
        environment = dict(line.split("=", 1) for line in self.config["Env"])
        return subprocess.Popen(
            [*drop, "--bounding-set=-all", *command], env=environment, preexec_fn=self._enter, text=True, **options
        )

    def run(self, command: list[str], what: str) -> str:
        process = self.start(command, stdout=subprocess.PIPE)
        output, _ = process.communicate(timeout=START_SECONDS)
        check(process.returncode == 0, f"{what}: exit code {process.returncode}")
        return output.strip()

    def _enter(self) -> None:
        os.chroot(self.root)
        os.chdir(self.config["WorkingDir"])


@contextmanager
def container(
    tree: Path, config: dict[str, Any], volume: Path, bundles: Path | None, *, read_only: bool
) -> Iterator[Container]:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        mount("--bind", tree, root)
        if read_only:
            mount("-o", "remount,bind,ro", root)
        if bundles is not None:
            mount("--bind", bundles, root / "bundles")
            mount("-o", "remount,bind,ro", root / "bundles")
        mount("--bind", volume, root / the_volume(config))
        for name in ("dev", "tmp"):
            mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", root / name)
        mount("-t", "proc", "proc", root / "proc")
        for name, numbers in DEVICES.items():
            os.mknod(root / "dev" / name, stat.S_IFCHR | 0o666, os.makedev(*numbers))
            (root / "dev" / name).chmod(0o666)
        (root / "dev/shm").mkdir(mode=0o1777)
        (root / "dev/shm").chmod(0o1777)
        try:
            yield Container(root=root, config=config)
        finally:
            subprocess.run(["umount", "--recursive", root], check=True)


def mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *arguments], check=True)


def the_volume(config: dict[str, Any]) -> str:
    """Its path inside, relative to the root."""
    (volume,) = config["Volumes"]
    return str(volume).lstrip("/")


@contextmanager
def service(box: Container, log: Path) -> Iterator[httpx.Client]:
    """The image's own command, from ready to stopped."""
    command = [*(box.config.get("Entrypoint") or []), *box.config["Cmd"]]
    (port,) = (exposed.removesuffix("/tcp") for exposed in box.config["ExposedPorts"])
    started = time.monotonic()
    with log.open("w") as output:
        process = box.start(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30.0) as client:
            while not ready(client):
                if process.poll() is not None or time.monotonic() - started > START_SECONDS:
                    raise CheckFailed(f"the service does not get ready; it said:\n{log.read_text()}")
                time.sleep(0.1)
            check(True, f"{' '.join(command)}: ready after {time.monotonic() - started:.1f} s")
            yield client
        process.send_signal(signal.SIGTERM)
        stopping = time.monotonic()
        code = process.wait(timeout=STOP_SECONDS)
        # uvicorn finishes its work, then lets the signal have its usual end
        check(code in (0, -signal.SIGTERM), f"stopped by SIGTERM in {time.monotonic() - stopping:.1f} s")
    finally:
        process.kill()
        process.wait()


def ready(client: httpx.Client) -> bool:
    try:
        return client.get("/v2/health/ready").is_success
    except httpx.TransportError:
        return False


def check_user(user: str) -> None:
    """Of every process in this namespace but this one: user, capabilities and the ban on new privileges."""
    others = [folder for folder in Path("/proc").iterdir() if folder.name.isdigit() and int(folder.name) != os.getpid()]
    states = [dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines()) for folder in others]
    users = {value for state in states for value in state["Uid"].split()}
    check(users == {user.split(":")[0]}, f"{len(states)} process(es), all as user {' '.join(sorted(users))}")
    powers = {(int(state["CapEff"], 16), int(state["CapBnd"], 16), state["NoNewPrivs"].strip()) for state in states}
    check(powers == {(0, 0, "1")}, "they hold no capability and can gain none")


def check_recalibration(client: httpx.Client) -> list[Any]:
    """Score, upload frequencies, score again. Returns: the last scores."""
    (model,) = client.get("/v1/models").raise_for_status().json()["models"]
    url = f"/v1/models/{model['name']}"
    class_names = client.get(url).raise_for_status().json()["class_names"]
    before = score(client, url)
    check(len(before) == len(class_names), f"scores of {len(before)} classes for a PNG file, best {before[0]}")
    rare = before[-1]["class"]
    rows = "".join(f"{name},{1000 if name == rare else 1}\n" for name in class_names)
    upload = client.post(
        f"{url}/class-frequencies",
        params={"role": "target"},
        content=f"class,count\n{rows}",
        headers={"Content-Type": "text/csv"},
    )
    check(upload.status_code == 201, f"class-frequency file accepted: {upload.json().get('active', upload.text)}")
    exported = client.get(f"{url}/calibrations/c1/bundle").raise_for_status().content
    again = client.post("/v1/models", content=exported, headers={"Content-Type": "application/x-tar"})
    check(again.status_code == 201, f"its own export registered as version {again.json().get('version', again.text)}")
    after = score(client, url)
    raised = [{entry["class"]: entry["score"] for entry in scores}[rare] for scores in (before, after)]
    check(raised[1] > 10 * raised[0], f"the score of class {rare} went from {raised[0]:.2e} to {raised[1]:.2e}")
    return after


def score(client: httpx.Client, url: str = "/v1/models/digits") -> list[Any]:
    """All classes for one grey image file, best first."""
    png = io.BytesIO()
    Image.linear_gradient("L").resize((24, 24)).save(png, "PNG")
    num_classes = len(client.get(url).raise_for_status().json()["class_names"])
    answer = client.post(
        f"{url}/scores", params={"top_k": num_classes}, content=png.getvalue(), headers={"Content-Type": "image/png"}
    )
    return list(answer.raise_for_status().json()["results"][0]["top"])


def snapshot(tree: Path) -> dict[str, tuple[int, int, int]]:
    """Every path of the tree; its change time tells a write, a rename and a change of mode alike."""
    states = {str(path.relative_to(tree)): path.lstat() for path in [tree, *tree.rglob("*")]}
    return {path: (state.st_mode, state.st_size, state.st_ctime_ns) for path, state in states.items()}


def megabytes(folder: Path) -> str:
    files = [path.lstat() for path in folder.rglob("*")]
    return f"{sum(state.st_size for state in files if not stat.S_ISDIR(state.st_mode)) / 1e6:.0f} MB"


def bring_up_loopback() -> None:
    """A new network namespace has it down; SIOCSIFFLAGS, as `ip link set lo up` sends it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, 0x8914, struct.pack("16sH14x", b"lo", 0x1))


@contextmanager
def new_volume(tree: Path, config: dict[str, Any]) -> Iterator[Path]:
    """As an engine makes a named volume: empty, with the owner of the folder in the image."""
    with tempfile.TemporaryDirectory() as folder:
        volume = Path(folder) / "volume"
        volume.mkdir()
        inside = (tree / the_volume(config)).stat()
        os.chown(volume, inside.st_uid, inside.st_gid)
        yield volume


def first_start(box: Container, log: Path) -> list[Any]:
    """Returns: the scores after the upload."""
    extra = box.run(["python", "-c", FIND_MODULES, *NOT_FOR_SERVING], "the image's Python runs")
    check(extra == "", f"it finds none of {', '.join(NOT_FOR_SERVING)} {extra}")
    with service(box, log) as client:
        check_user(box.config["User"])
        check("Healthcheck" in box.config, "the image has a health check")
        box.run(box.config["Healthcheck"]["Test"][1:], "the image's own health check")
        return check_recalibration(client)


def check_image(tree: Path, config: dict[str, Any], bundles: Path, work: Path) -> None:
    user = config["User"]
    check(re.fullmatch(r"[1-9]\d*:[1-9]\d*", user) is not None, f"the image names a user by number, not root: {user!r}")
    with new_volume(tree, config) as volume:
        before = snapshot(tree)
        with container(tree, config, volume, bundles, read_only=False) as box:
            scores = first_start(box, work / "first.log")
        changed = sorted({path for path, _ in before.items() ^ snapshot(tree).items()})
        check(not changed, f"nothing written outside the volume {' '.join(changed[:5])}")
        written = [path.relative_to(volume) for path in volume.rglob("*") if path.is_file()]
        check(bool(written), f"written to the volume: {len(written)} files in {sorted({p.parts[0] for p in written})}")
        for mounted, what in ((bundles, "with the bundle again"), (None, "without the bundle")):
            with (
                container(tree, config, volume, mounted, read_only=True) as box,
                service(box, work / "later.log") as client,
            ):
                check(score(client) == scores, f"restarted read-only, {what}: the same scores")
    console.print(f"File tree of the image {megabytes(tree)}, of that /opt/venv {megabytes(tree / 'opt/venv')}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--tree", "--config", "--bundles", "--work"):
        parser.add_argument(name, type=Path, required=True)
    given = parser.parse_args()
    bring_up_loopback()
    check_image(given.tree, json.loads(given.config.read_text()), given.bundles, given.work)


if __name__ == "__main__":
    try:
        main()
    except CheckFailed as failure:
        sys.exit(f"The image check failed: {failure}")
