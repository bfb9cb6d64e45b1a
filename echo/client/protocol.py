"""What the client knows of the echo protocol beyond the framing: its one word."""

EXIT_WORD = b"exit"


def is_exit(message: bytes) -> bool:
    """Whether the server will end the session instead of sending this back."""
    return message.strip().lower() == EXIT_WORD
