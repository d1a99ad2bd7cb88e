"""`python -m mavilt_pl.cli`: the command line without the installed script."""

import sys

from mavilt_pl.cli import main

if __name__ == "__main__":
    sys.exit(main())
