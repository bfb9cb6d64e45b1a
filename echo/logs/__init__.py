"""The lines of a log, and where they go. Only ``run`` and the server command load this."""
