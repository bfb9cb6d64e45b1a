"""``python -m echo.server``: options, logs, workers, and the service manager."""
