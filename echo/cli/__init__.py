"""The two commands: ``echo.server`` and ``echo.client``. Nothing else imports this."""
