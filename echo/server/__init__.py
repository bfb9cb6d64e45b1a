"""The server: accept, track, limit, drain. ``python -m echo.server`` runs the echo server."""

from .server import Server
from .statistics import ConnectionInfo, Statistics

__all__ = ["ConnectionInfo", "Server", "Statistics"]
