"""What connections may be wrapped in, and where they run: TLS, the PROXY protocol, processors."""
