"""The client: ``connect()`` and ``Client``. ``python -m echo.client`` runs the command line."""

from .client import Client, connect

__all__ = ["Client", "connect"]
