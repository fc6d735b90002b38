"""Run by the first cell of every notebook on Colab; `drive` comes from there (docs/colab.md)."""

import os
import sys
from pathlib import Path

from IPython.display import display

folder = str(Path(__file__).resolve().parent)
os.chdir(folder)
# a kernel that runs already does not see what pip has just installed in place
if folder not in sys.path:
    sys.path.insert(0, folder)

from helpers.machine import prepare  # noqa: E402 - only now can it be found

display(prepare(drive=bool(globals().get("drive", False))))
