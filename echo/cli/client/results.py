"""The files of ``--ping``, ``--bench`` and ``--merge``: summaries to read, pages and histograms to write.

A file that is written is opened before the measurement begins, so that a path that cannot be written costs no run. It
replaces what was in the file. So it must not be one that the command also reads, or prints to.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import stat
import sys
from typing import TYPE_CHECKING, Any, Callable, Iterator, List, NamedTuple, NoReturn, Optional, Sequence, Tuple

from ...measure.report import Report
from .. import arguments
from ..streams import CannotWrite

if TYPE_CHECKING:
    from ...measure.document import Run

COMPARED = 5
"""Maximum number of runs that one is compared with: a chart has colours for them, and a table has room."""

_LONGEST_LINE = 64 << 20
"""Maximum length of a line that is read, in characters: a file that never ends is not a summary."""


def summary(path: str) -> Run:
    """Read a summary; for options."""
    from ...measure.document import Run  # here and below: most runs of the command need none of this

    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            return Run.read(path, _lines(file))
    except OSError as exc:
        why = f"{exc.strerror or exc}; check the path, and give host and port before this option"
    except ValueError as exc:
        why = str(exc)
    raise argparse.ArgumentTypeError(f"cannot use {path!r}: {why}")


def _lines(file: Any) -> Iterator[str]:
    for line in iter(lambda: file.readline(_LONGEST_LINE), ""):
        if len(line) == _LONGEST_LINE:
            raise ValueError("a line is too long for a summary")
        yield line


class _Output(NamedTuple):
    """A file to write: its option, its path, its descriptor, whether it is a new one, and how its text is made."""

    option: str
    path: str
    descriptor: int
    is_new: bool
    text: Callable[[Run], str]


class Results:
    """The comparison and the files that are made of the summary of ``report``.

    A context manager: it opens the files, writes them at its end, and removes those that were new and have not been
    written. Each output is written although another one cannot be: the run cannot be repeated.
    """

    def __init__(self, prog: str, options: argparse.Namespace, report: Report) -> None:
        self._prog = prog
        self._report = report
        _import_what_options_need(options)
        wanted = (("--report", options.report, self._page), ("--hdr", options.hdr, _percentile_file))
        self._wanted = [(option, path, text) for option, path, text in wanted if path is not None]
        self._compared: Sequence[Run] = options.compare
        self._parts: Sequence[Run] = options.merge
        self._as_json: bool = options.json
        self._outputs: List[_Output] = []
        if len(self._compared) > COMPARED:
            arguments.fail(prog, f"too many files for --compare: the maximum is {COMPARED}", 2)
        mode = "ping" if options.ping else "bench"
        for run in self._compared:
            if run.mode != mode:
                arguments.fail(
                    prog, f"cannot compare a {mode} with {run.name!r}: that is a {run.mode}; give a {mode}", 2
                )

    def __enter__(self) -> Results:
        for option, path, text in self._wanted:
            is_new = not os.path.lexists(path)
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
            except (OSError, ValueError) as exc:
                self._refuse(path, getattr(exc, "strerror", None) or exc)
            users = [user for user, status in self._files_in_use() if os.path.samestat(status, os.fstat(descriptor))]
            self._outputs.append(_Output(option, path, descriptor, is_new, text))
            if users and stat.S_ISREG(os.fstat(descriptor).st_mode):
                self._refuse(path, f"{users[0]} has the same file")
        return self

    def __exit__(self, cls: Optional[type], exc: Optional[BaseException], traceback: object) -> None:
        try:
            if exc is None or (isinstance(exc, CannotWrite) and self._report.summary):
                self._write()
        finally:
            self._discard()

    def _refuse(self, path: str, why: object) -> NoReturn:
        self._discard()
        arguments.fail(self._prog, f"cannot write {path!r}: {why}; give another path", 2)

    def _files_in_use(self) -> Iterator[Tuple[str, os.stat_result]]:
        """The files that the command prints to, reads, or writes to, with what uses them."""
        for output in self._outputs:
            yield output.option, os.fstat(output.descriptor)
        for name, stream in (("standard output", sys.stdout), ("standard error", sys.stderr)):
            with contextlib.suppress(OSError, ValueError):  # it is not a file
                yield name, os.fstat(stream.fileno())
        for option, runs in (("--compare", self._compared), ("--merge", self._parts)):
            for run in runs:
                with contextlib.suppress(OSError):  # it is gone
                    yield option, os.stat(run.name)

    def _discard(self) -> None:
        for _, path, descriptor, is_new, _ in self._outputs:
            os.close(descriptor)
            if is_new:
                with contextlib.suppress(OSError):
                    os.unlink(path)
        self._outputs.clear()

    def show(self) -> None:
        """Warn and compare."""
        self._warn()
        if self._compared:
            from ...measure.differences import differences

            self._report.picture(differences([self._run(), *self._compared]))

    def _run(self) -> Run:
        from ...measure.document import Run

        merged = self._parts[0].name if len(self._parts) == 1 else "all machines"
        return Run.of(merged if self._parts else "this run", self._report.summary)

    def _write(self) -> None:
        failures = []
        for output in list(self._outputs):
            data = output.text(self._run()).encode(errors="backslashreplace")
            try:
                if stat.S_ISREG(os.fstat(output.descriptor).st_mode):
                    _reserve(output.descriptor, len(data))
                    os.ftruncate(output.descriptor, len(data))
                while data:
                    data = data[os.write(output.descriptor, data) :]
            except OSError as exc:
                failures.append(f"cannot write {output.path!r}: {exc.strerror or exc}")
            else:
                self._outputs.remove(output)
                os.close(output.descriptor)
        if failures:
            arguments.fail(self._prog, "; ".join(failures), 1)

    def _warn(self) -> None:
        """Print on standard error why the figures are doubtful, unless the text of the summary has it."""
        from ...measure.differences import doubts
        from ...measure.document import warnings

        summary = self._report.summary
        # The address: a script may have several clients. In text these are rows.
        found = [f"{summary['address']}: {warning}" for warning in warnings(summary)] if self._as_json else []
        found += doubts(self._parts) if len(self._parts) > 1 else []
        for warning in found:
            print(f"{self._prog}: warning: {warning}", file=sys.stderr)

    def _page(self, run: Run) -> str:
        from ...measure.page import page

        have_colours = 1 < len(self._parts) <= COMPARED - len(self._compared)
        return page(run, self._compared, self._parts if have_colours else ())


def _import_what_options_need(options: argparse.Namespace) -> None:
    """Import now what the end of the run needs: an upgrade may replace the files of this program during the run."""
    from ...measure import differences  # noqa: F401

    if options.report is not None:
        from ...measure import page  # noqa: F401
    if options.hdr is not None:
        from ...measure import histogram_file  # noqa: F401


def _reserve(descriptor: int, size: int) -> None:
    """Raise ``OSError`` if a file has no room for so many bytes. Then it keeps what was in it: the last run."""
    if not hasattr(os, "posix_fallocate"):
        return
    before = os.fstat(descriptor).st_size
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as exc:
        os.ftruncate(descriptor, before)  # it may have grown
        # Not every file system reserves room. Where C's library does it by hand, it would have to read (EBADF).
        if exc.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF):
            raise


def _percentile_file(run: Run) -> str:
    from ...measure.histogram_file import percentile_file

    return percentile_file(run.rtt)
