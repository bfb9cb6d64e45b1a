"""An instrument in a program: a power supply that speaks SCPI, as laboratory devices do, in lines that end with CRLF.

It shows how to keep the state of one session (on ``self``), use lines with CRLF, and log all messages:

    python3 -m examples.crlf_device
    socat - TCP:127.0.0.1:65432,crlf          # then type *IDN?  VOLT 5  MEAS:VOLT?  VOLT 99  SYST:ERR?

Each connection gets a device of its own, so tests can run at the same time.
"""

from __future__ import annotations

import collections
import re
import sys
from typing import Callable

import echo


class Device(echo.LoggingMixin, echo.MessageRequestHandler):  # each line is in the log, in both directions
    framing = echo.CRLFFraming()

    def connection_made(self) -> None:
        self.errors: collections.deque[str] = collections.deque()
        self.volts = 0.0

    def message_received(self, message: bytes) -> None:
        line = message.decode("ascii", "replace").strip()
        answer = self.execute(line) if line else ""
        if answer:
            self.send(answer.encode())

    def execute(self, line: str) -> str:
        for pattern, command in COMMANDS.items():
            match = re.fullmatch(pattern, line, re.IGNORECASE)
            if match:
                return command(self, *match.groups())
        return self.error(-113, "Undefined header")

    def error(self, code: int, text: str) -> str:
        """A device does not reply with an error: it keeps the error until the client asks for it."""
        if len(self.errors) < 10:
            self.errors.append(f'{code},"{text}"')
        else:
            self.errors[-1] = '-350,"Queue overflow"'
        return ""

    def reset(self) -> str:
        self.volts = 0.0
        return ""

    def next_error(self) -> str:
        return self.errors.popleft() if self.errors else '0,"No error"'

    def set_volts(self, text: str) -> str:
        try:
            volts = float(text)
        except ValueError:
            return self.error(-104, "Data type error") if text else self.error(-109, "Missing parameter")
        if not 0 <= volts <= 30:
            return self.error(-222, "Data out of range")
        self.volts = volts
        return ""


# MEASure:VOLTage? in a manual means that MEAS:VOLT? is accepted, too, in upper or lower case.
COMMANDS: dict[str, Callable[..., str]] = {
    r"\*IDN\?": lambda device: "Example Instruments,PSU-30,0,1.0",
    r"\*RST": Device.reset,
    r"SYST(?:em)?:ERR(?:or)?\?": Device.next_error,
    r"MEAS(?:ure)?:VOLT(?:age)?\?": lambda device: f"{device.volts:+.6E}",
    r"VOLT(?:age)?( .*|)": Device.set_volts,
}


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 65432
    sys.exit(echo.run(Device, ("127.0.0.1", port)))
