"""The command line of the plans: `python -m helpers.runner COMMAND --plan laptop`."""

from __future__ import annotations

import sys

from helpers.runner.run import main

if __name__ == "__main__":
    sys.exit(main())
