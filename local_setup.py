"""What `make setup` runs in a new environment: torch's right build, then all other packages.

On Linux the newest torch comes with CUDA, which takes several GB that a machine without an NVIDIA
GPU has no use for. Such a machine gets the CPU build of the version that the committed results
came from, out of torch's own index. Where the user has told pip where packages are (`find-links`
or an index, in PIP_ARGS or in pip's configuration), that is left to pip.

Only the standard library is imported, by `reproduction.machine.nvidia` too: nothing else is there
yet.
"""

from __future__ import annotations

import importlib.util
import platform
import re
import subprocess
import sys

from reproduction.machine import has_nvidia_driver

TORCH = "2.13.0"  # of the committed results
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")
SOURCES = r"find-links|index-url|no-index|(^|\s)-[fi]"
# as measured, with all other packages
CPU = "torch is its build for CPUs, in all 0.6 GB to download, 2.2 GB of disk"
CUDA = "torch comes with CUDA, in all 3.5 GB to download, 7 GB of disk"


def main(index: str, options: list[str]) -> str:
    """Install everything with the user's options for pip; the error's message, "" if none."""
    # an older pip cannot resume a download that broke off
    steps = [["--upgrade", "pip>=25.1"]]
    if not importlib.util.find_spec("torch"):
        torch, line = choose_torch(index, options)
        steps += torch
        sys.stdout.write(line)
    steps.append(["--no-compile", "-c", "constraints.txt", "-e", ".[dev]"])
    for step in steps:
        if reason := pip_install(*options, *step):
            return (
                f"pip could not install the packages with Python {platform.python_version()}: "
                f"{reason}\nMend that, then run make again"
            )
    return ""


def choose_torch(index: str, options: list[str]) -> tuple[list[list[str]], str]:
    """What pip is to install for torch before everything else, and the line that says so."""
    if re.search(SOURCES, " ".join(options)):
        return [], ""
    command = [*PIP, "config", "list"]
    configured = subprocess.run(command, capture_output=True, text=True, check=False)
    if re.search(SOURCES, configured.stdout):
        return [], ""
    if platform.system() != "Linux":  # whose builds have no CUDA in them
        return [], ""
    if has_nvidia_driver():
        return [], f"an NVIDIA driver is here, so {CUDA}\n"
    if not offers_torch(index):
        line = (
            f"torch's own index ({index}) did not answer in 5 s with {TORCH}, so {CUDA}"
        )
        return [], f"{line}\n"
    step = ["--no-deps", "--no-compile", "--index-url", index, f"torch=={TORCH}"]
    return [step], f"no NVIDIA driver is here, so {CPU}\n"


def offers_torch(index: str) -> bool:
    """Whether the index answers within five seconds and has a torch for this Python.

    pip asks, since it knows the user's proxy and certificates.
    """
    command = [*PIP, "index", "versions", "torch", "--index-url", index]
    try:
        answer = subprocess.run(
            [*command, "--timeout", "5", "--retries", "0"],
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
        )
    except subprocess.TimeoutExpired:
        return False
    return TORCH in answer.stdout


def pip_install(*arguments: str) -> str:
    """Run pip, with its bars where someone watches; its last reason if it fails, else ""."""
    quiet = [] if sys.stdout.isatty() else ["--quiet"]
    sys.stdout.flush()
    errors = []
    with subprocess.Popen(
        [*PIP, "install", *quiet, *arguments], stderr=subprocess.PIPE, text=True
    ) as process:
        for line in process.stderr:
            sys.stderr.write(line)
            errors.append(line.strip())
    if not process.returncode:
        return ""
    # the last of a conflict's lines names a page of pip's documentation only
    reasons = [line for line in errors if line.startswith("ERROR: ")]
    reasons = [line for line in reasons if "ResolutionImpossible" not in line]
    reason = (reasons or errors or ["it gave none"])[-1].removeprefix("ERROR: ")
    if any("Retrying" in line for line in errors):
        reason += " (the connection failed: check the network)"
    return reason


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]) or 0)
