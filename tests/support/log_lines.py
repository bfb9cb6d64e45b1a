"""A strict reader of the server command's log: it checks the form of each line."""

import json
import re

from echo.text import LONGEST_LINE

RECORD = re.compile(
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} (DEBUG|INFO|WARNING|ERROR|CRITICAL|Level -?\d+) +(\[\d+\] )?.*"
)
MARK = "  | "


def records_of(data, form):
    """Check each line of ``data``, bytes of a log in the format ``form``; return the records: (level, message) of text,
    objects of JSON. Raise ``AssertionError`` at the first line that is not a valid record."""
    text = data.decode("utf-8")  # strict
    assert not text or text.endswith("\n"), f"the last line has no end: {text[-200:]!r}"
    return [{"text": _text, "json": _json}[form](line) for line in text.split("\n")[:-1] if not _continues(line, form)]


def _continues(line, form):
    assert line.isprintable(), f"a line with control characters: {line!r}"
    assert len(line.encode()) <= LONGEST_LINE, f"the journal would split this line: {line!r}"
    return form == "text" and line.startswith(MARK)


def _text(line):
    match = RECORD.fullmatch(line)
    assert match, f"not a record: {line!r}"
    return match.group(1), line.partition(match.group(1))[2].lstrip()


def _json(line):
    assert line.isascii()
    fields = json.loads(line, object_pairs_hook=_unique, parse_constant=_refuse)
    assert isinstance(fields, dict)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", fields["time"])
    for name in ("level", "logger", "message"):
        assert isinstance(fields[name], str), f"{name} is not text: {line!r}"
    for name in ("message", "exception", "stack"):
        for part in fields.get(name, "").split("\n") if name != "message" else [fields[name]]:
            assert part.isprintable(), f"{name} has control characters: {line!r}"
    json.dumps(fields, ensure_ascii=False).encode("utf-8")  # no lone surrogates
    return fields


def _unique(pairs):
    assert len(dict(pairs)) == len(pairs), f"a name stands twice: {pairs!r}"
    return dict(pairs)


def _refuse(name):
    raise AssertionError(f"{name} is not JSON")
