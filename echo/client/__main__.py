"""``python -m echo.client``."""

import sys

from ..cli.client.command import main

if __name__ == "__main__":
    sys.exit(main())
