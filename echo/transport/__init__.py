"""TLS, the PROXY protocol, and the processors that sessions run on."""
