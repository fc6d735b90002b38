"""Install the project on Google Colab: run by the first cell of every notebook (docs/colab.md)."""

import importlib
import subprocess
import sys
import sysconfig
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
PACKAGES = ("helpers", "reproduction")


def main() -> str:
    """Install, make the package visible to the kernel that runs, and return what to say."""
    pip = [sys.executable, "-m", "pip", "install", "-q", "-e", str(FOLDER)]
    if subprocess.run(pip, check=False).returncode:
        sys.exit(
            "set-up failed: pip's reason is above; check the network, then run this cell again"
        )
    for name in PACKAGES:
        # pip puts the project on the path of new processes; the kernel has started already
        link = Path(sysconfig.get_path("purelib"), name)
        link.unlink(missing_ok=True)
        link.symlink_to(FOLDER / name)
        importlib.invalidate_caches()
        importlib.import_module(name)  # what is wrong with it is said here
    return (
        'Ready. In a parameters cell, preset = "auto" takes the largest model that fits this '
        f"machine.\nResults in {FOLDER / 'results'} go when this machine goes: docs/colab.md has "
        "the line that copies them to your Google Drive."
    )


if __name__ == "__main__":
    sys.stdout.write(main() + "\n")
