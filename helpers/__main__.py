"""`python -m helpers VERB`, the command line: see `helpers.command`."""

import sys

from helpers.command import main

if __name__ == "__main__":
    sys.exit(main())
