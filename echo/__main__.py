"""``python -m echo`` is no program; it names the two that are."""

from .cli.arguments import fail

fail("echo", "run python3 -m echo.server or python3 -m echo.client; each has --help", 2)
