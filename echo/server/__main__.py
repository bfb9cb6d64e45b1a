"""``python -m echo.server``."""

import sys

from ..cli.server.command import main

if __name__ == "__main__":
    sys.exit(main())
