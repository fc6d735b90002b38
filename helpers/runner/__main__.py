"""The command line of the plans: `python -m helpers.runner COMMAND --plan laptop`."""

import sys

from helpers.runner.run import main

if __name__ == "__main__":
    sys.exit(main())
