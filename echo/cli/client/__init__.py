"""``python -m echo.client``: a session at the terminal, messages, pipes."""
