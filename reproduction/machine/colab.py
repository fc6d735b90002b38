"""What a kernel needs on Google Colab; docs/colab.md is the page for users."""

import importlib.metadata
import sys

from helpers.errors import RunError

# may be loaded before the set-up: then a version that pip installs is not the one that runs
WATCHED = ("numpy", "pandas", "torch", "transformers", "ipywidgets", "matplotlib")


def prepare_kernel() -> None:
    """On Colab, let widgets of other packages show; elsewhere nothing.

    Raises RunError if pip has replaced a package that this kernel had loaded already.
    """
    if "google.colab" not in sys.modules:
        return
    for name in WATCHED:
        if name not in sys.modules:
            continue
        loaded = sys.modules[name].__version__
        installed = importlib.metadata.version(name)
        # the label of a build, as in 2.9.0+cu128, is not always in both
        if loaded.partition("+")[0] != installed.partition("+")[0]:
            raise RunError(
                f"{name} {loaded} is loaded and pip has installed {installed}: choose "
                "Runtime > Restart session, then run the notebook from its first cell"
            )
    from google.colab import output

    output.enable_custom_widget_manager()
