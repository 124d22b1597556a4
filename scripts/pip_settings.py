"""Write this machine's pip settings into a folder, for a build that runs somewhere else: pip.conf and cert.pem.

An index, a proxy, a time-out and a certificate are of use there; a path of this machine is not.
"""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

CERT_IN_BUILD = "/run/secrets/pip_cert"
PORTABLE = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "default-timeout", "retries")


def pip_settings() -> dict[str, str]:
    """The settings in force here: a file's, overruled by the environment's, as pip itself has it."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listing = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.findall(r"^(global|install|:env:)\.([\w-]+)=(.*)$", listing.stdout, flags=re.MULTILINE)
    ranked = sorted(found, key=lambda entry: ("global", "install", ":env:").index(entry[0]))
    return {key: ast.literal_eval(value) for _, key, value in ranked}


def without_local(addresses: str) -> str:
    return " ".join(address for address in addresses.split() if not address.startswith("file:"))


def main(folder: Path) -> None:
    settings = pip_settings()
    portable = {key: without_local(settings.get(key, "")) for key in PORTABLE}
    lines = [f"{key} = {value}" for key, value in portable.items() if value]
    if certificate := settings.get("cert"):
        shutil.copyfile(certificate, folder / "cert.pem")
        lines.append(f"cert = {CERT_IN_BUILD}")
    (folder / "pip.conf").write_text("\n".join(["[global]", *lines, ""]))


main(Path(sys.argv[1]))
