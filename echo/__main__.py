"""``python -m echo`` names the two commands, and ends with code 2."""

from .cli.arguments import fail

fail("echo", "run python3 -m echo.server or python3 -m echo.client; each has --help", 2)
