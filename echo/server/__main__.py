"""``python -m echo.server``."""

from ..cli.server.command import run as main

if __name__ == "__main__":
    main()
