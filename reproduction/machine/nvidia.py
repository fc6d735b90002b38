"""Whether this machine has an NVIDIA GPU; asked before any package is installed, too."""

from __future__ import annotations

import shutil
from pathlib import Path


def has_nvidia_driver() -> bool:
    """Whether an NVIDIA driver is loaded, on Linux or under WSL."""
    places = (Path("/proc/driver/nvidia"), Path("/usr/lib/wsl/lib/libcuda.so.1"))
    return bool(shutil.which("nvidia-smi")) or any(map(Path.exists, places))
