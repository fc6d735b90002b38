"""`python -m reproduction.proof`: what `make same` runs."""

import sys

from reproduction.proof.same_bits import main

if __name__ == "__main__":
    sys.exit(main())
