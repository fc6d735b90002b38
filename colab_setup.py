"""Install the project on Google Colab: run by the first cell of every notebook (docs/colab.md)."""

import importlib
import subprocess
import sys
import sysconfig
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def main() -> str:
    """Install, make the package visible to the kernel that runs, and return what to say."""
    pip = [sys.executable, "-m", "pip", "install", "-q", "-e", str(FOLDER)]
    if subprocess.run(pip, check=False).returncode:
        sys.exit(
            "set-up failed: pip's reason is above; check the network, then run this cell again"
        )
    # pip puts the project on the path of new processes; the kernel has started already
    link = Path(sysconfig.get_path("purelib"), "helpers")
    link.unlink(missing_ok=True)
    link.symlink_to(FOLDER / "helpers")
    importlib.invalidate_caches()
    from helpers.machine import describe_colab

    return describe_colab()


if __name__ == "__main__":
    sys.stdout.write(main() + "\n")
