"""``python -m minga``: the same as the ``minga`` command."""

import sys

from minga.cli import main

if __name__ == "__main__":
    sys.exit(main())
