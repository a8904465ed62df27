"""`python -m raymed`: the command where it is not on the PATH, as in a job on a cluster."""

import sys

from raymed.cli import main

if __name__ == "__main__":
    sys.exit(main())
