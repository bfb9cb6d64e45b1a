"""The picture of both commands at a terminal, ``docs/terminal.svg``: its lines are what they print, in their colors.

``python3 tests/support/picture.py`` makes it again. ``tests/project/test_picture.py`` compares its lines with what the
commands print today. The file holds its text as text, and adapts to a dark or light page.
"""

import html
import os
import re
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from support import ROOT
from support.processes import Process
from support.terminal import CTRL_C, Terminal

FILE = os.path.join(ROOT, "docs", "terminal.svg")

CLASSES = {"32": "good", "33": "doubtful", "31": "bad", "1": "strong", "2": "faint"}

WIDTH, HEIGHT = 7.2, 17
"""Of a character and of a line, in pixels."""

STYLE = """\
  text { font: 12px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; white-space: pre }
  rect { fill: #ffffff; stroke: #d0d7de } text { fill: #1f2328 } .strong { font-weight: bold }
  .good { fill: #1a7f37 } .doubtful { fill: #9a6700 } .bad { fill: #cf222e } .faint { fill: #6e7781 }
  @media (prefers-color-scheme: dark) {
    rect { fill: #0d1117; stroke: #30363d } text { fill: #e6edf3 }
    .good { fill: #3fb950 } .doubtful { fill: #d29922 } .bad { fill: #f85149 } .faint { fill: #8b949e }
  }
"""


def session(run, port, client):
    """Use both commands; return what they print: the lines of the server, at a terminal, and of the client.

    ``run`` starts a process, as the fixture does. ``port`` 0 is any free one. ``client(*arguments)`` returns the lines
    that the client prints.
    """
    server = Terminal(run, "echo.server", port, TERM="xterm")
    try:
        port = server.until(rb"listening on .*127\.0\.0\.1:(\d+)").group(1).decode()
        lines = []
        for options, reason in (("-m hello -m exit", b"exit"), ("--ping -c 2 -s 20 -i 0", b"eof")):
            lines += [f"$ python3 -m echo.client {options}", *client("127.0.0.1", port, *options.split())]
            server.until(rb"disconnected: [^\r]*" + reason)
        server.type(CTRL_C)
        assert server.leave() == 0
    finally:
        os.close(server.master)
    return ["$ python3 -m echo.server", *_lines(server)], lines


def client_at_a_terminal(*arguments):
    user = Terminal(Process, "echo.client", *arguments, TERM="xterm")
    try:
        assert user.leave() == 0
    finally:
        os.close(user.master)
    return _lines(user)


def _lines(terminal):
    return terminal.screen.decode().replace("\r\n", "\n").rstrip("\n").split("\n")


def picture(*screens):
    """The terminals as an SVG, one above the other."""
    columns = max(len(_without_colors(line)) for lines in screens for line in lines)
    width = round(columns * WIDTH) + 24
    body, top = [], 1
    for lines in screens:
        height = len(lines) * HEIGHT + 18
        body.append(f'<rect x="1" y="{top}" width="{width - 2}" height="{height}" rx="6"/>')
        for number, line in enumerate(lines, 1):
            length = round(len(_without_colors(line)) * WIDTH, 1)
            place = f'x="12" y="{top + 5 + number * HEIGHT}" textLength="{length}" lengthAdjust="spacingAndGlyphs"'
            if length:
                body.append(f"<text {place}>{_colored(line)}</text>")
        top += height + 10
    size = f'width="{width}" height="{top - 9}" viewBox="0 0 {width} {top - 9}"'
    title = "<title>The echo server and its client, each at a terminal</title>"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
    return "\n".join([head, title, f"<style>\n{STYLE}</style>", *body, "</svg>", ""])


def lines_in(svg):
    """The lines of text in a picture that ``picture`` has made, without the empty ones."""
    return [html.unescape(re.sub("<.*?>", "", text)) for text in re.findall("<text.*?>(.*)</text>", svg)]


def lines_on(*screens):
    """The same of terminals."""
    return [_without_colors(line) for lines in screens for line in lines if line]


def _without_colors(line):
    return re.sub(r"\x1b\[\d+m", "", line)


def _colored(line):
    """The line as SVG: no text of it is taken for an element."""
    parts = re.split(r"\x1b\[(\d+)m(.*?)\x1b\[0m", line)
    text = html.escape(parts[0], quote=False)
    for style, word, rest in zip(parts[1::3], parts[2::3], parts[3::3]):
        text += f'<tspan class="{CLASSES[style]}">{html.escape(word, quote=False)}</tspan>'
        text += html.escape(rest, quote=False)
    return text


if __name__ == "__main__":
    screens = session(Process, "65432", client_at_a_terminal)
    with open(FILE, "w", encoding="utf-8") as file:
        file.write(picture(*screens))
