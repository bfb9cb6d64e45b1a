"""Line editors. Each reads a line from the terminal, and prints messages above it meanwhile.

Between two lines the terminal does not edit what is typed ahead: it would cut a line after 4095 bytes. It does not echo
it either: the next prompt shows it.
"""

from __future__ import annotations

import functools
import os
import select
import sys
import unicodedata
from typing import Any, List, Optional

from ...text import escape, is_dumb
from .. import streams
from .letters import whole_letters

termios: Any
try:
    import termios
except ImportError:  # Windows
    termios = None

readline: Any
try:
    import readline
except ImportError:  # Windows, and some builds of Python
    readline = None

PROMPT = "> "


class Editor:
    """The base of the editors, and the one for systems whose console edits lines.

    All methods are for the main thread; ``above`` of this class is for any.
    """

    def read(self) -> bytes:
        """Return a line without its end. Raises ``EOFError`` if the user has ended the input."""
        sys.stdin.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]  # so that any bytes can be typed
        try:
            return input(PROMPT).encode(sys.stdin.encoding, "surrogateescape")
        except BaseException:
            _write("\n")  # what follows begins on a new line
            raise

    def waits(self) -> bool:
        """Whether ``read`` waits for a key. Only then a signal handler may call ``above``."""
        return False

    def above(self, text: str) -> None:
        """Print a message above the prompt. The typed text stays in view below it, with the cursor where it was."""
        _write(f"\r{text}\n{PROMPT}")

    def take_terminal(self) -> None:
        """Prepare the terminal, before the first ``read`` and when the process goes on after it was stopped."""

    def release_terminal(self) -> None:
        """Leave the terminal as it was, before the process ends or stops."""

    def give_up(self, last: str) -> None:
        """A signal ends the process: as ``release_terminal``, then print ``last``. Wait for nothing: output that the
        terminal holds up is lost."""
        _write(last)

    def discard_typed(self) -> None:
        """Discard the keys that no ``read`` has used."""


class _TerminalEditor(Editor):
    def __init__(self) -> None:
        self._descriptor = sys.stdin.fileno()
        self._original = termios.tcgetattr(self._descriptor)
        self._dumb = is_dumb()

    def take_terminal(self) -> None:
        try:
            found = termios.tcgetattr(self._descriptor)
        except termios.error:
            pass  # the terminal is gone
        else:
            if found[3] & termios.ICANON:  # else they are this editor's, or of a shell at its prompt
                self._original = found  # the user may have changed them while the process was stopped
        self._set(echo=False)

    def release_terminal(self) -> None:
        if self._is_in_foreground():
            self._restore()

    def give_up(self, last: str) -> None:
        if self._is_in_foreground():
            self._make_room()
            self._restore()
            super().give_up(last)

    def _make_room(self) -> None:
        """Let writes go on that wait for the user's Ctrl-Q after a Ctrl-S, or for a terminal that reads nothing."""
        if not select.select([], [self._descriptor], [], 0)[1]:
            try:
                termios.tcflow(self._descriptor, termios.TCOOFF)  # on Linux, TCOON alone only ends a TCOOFF
                termios.tcflow(self._descriptor, termios.TCOON)
                termios.tcflush(self._descriptor, termios.TCOFLUSH)
            except termios.error:
                pass  # the terminal is gone

    def discard_typed(self) -> None:
        if self._is_in_foreground():
            try:
                termios.tcflush(self._descriptor, termios.TCIFLUSH)
            except termios.error:
                pass  # the terminal is gone

    def _is_in_foreground(self) -> bool:
        """Whether the terminal is this process's. Otherwise it is the shell's, with settings of the shell; a process
        that changes them is stopped, even if it does so because a signal is to end it."""
        try:
            return os.tcgetpgrp(self._descriptor) == os.getpgrp()
        except OSError:  # it is not the controlling terminal, so no shell takes it away; or it is gone
            return True

    def _restore(self) -> None:
        self._apply(self._original)

    def _set(self, *, echo: bool) -> None:
        """Switch the terminal's own editing off. Ctrl-C and Ctrl-Z go on to send their signals."""
        settings: List[Any] = list(self._original)
        settings[3] &= ~(termios.ICANON | termios.IEXTEN | termios.ECHO)
        settings[3] |= termios.ECHO if echo else 0
        settings[6] = list(settings[6])
        settings[6][termios.VMIN], settings[6][termios.VTIME] = 1, 0
        self._apply(settings)

    def _apply(self, settings: List[Any]) -> None:
        try:
            termios.tcsetattr(self._descriptor, termios.TCSANOW, settings)
        except termios.error:
            pass  # the terminal is gone


class ReadlineEditor(_TerminalEditor):
    """GNU readline, or libedit, which Python offers as the same module."""

    def __init__(self) -> None:
        super().__init__()
        for setting in ("convert-meta off", "input-meta on", "output-meta on"):
            readline.parse_and_bind(f"set {setting}")  # in the C locale, letters beyond ASCII would be commands
        self._reads = False
        self._library: Optional[_GNUReadline] = None
        try:
            self._library = _GNUReadline()
        except (ImportError, OSError, AttributeError, ValueError):
            pass  # libedit, an old readline, or a Python without ctypes

    def read(self) -> bytes:
        try:
            self._reads = True
            if self._library is not None:
                readline.set_startup_hook(self._library.show_keys)
            else:
                self._set(echo=True)  # otherwise it would show nothing; a key typed right now is shown twice
            return super().read()
        finally:
            readline.set_startup_hook()
            self._set(echo=False)
            self._reads = False

    def waits(self) -> bool:
        if self._library is not None:
            return self._reads and self._library.is_prepared()
        try:
            return self._reads and not termios.tcgetattr(self._descriptor)[3] & termios.ECHO
        except termios.error:
            return False

    def above(self, text: str) -> None:
        if self._dumb:
            _write("\n")
        elif self._library is None:
            _write("\r\x1b[K")
        else:
            self._library.clear()
        _write(f"{text}\n")
        self._redraw()

    def take_terminal(self) -> None:
        super().take_terminal()
        if self._library is not None:
            self._library.measure()
        if self._reads:
            if self._library is not None:
                self._library.prepare()
            _write("\r")
            self._redraw()

    def _restore(self) -> None:
        if self._library is not None:
            self._library.restore()
        super()._restore()

    def _redraw(self) -> None:
        if self._library is not None:
            self._library.redraw()
        else:
            _write(PROMPT + readline.get_line_buffer())  # the cursor is at the end: Python cannot ask where it was


class _GNUReadline:
    """Functions of the library below Python's module that the module does not offer.

    Its functions may be called only in the main thread, while the library waits for a key. That is when signal handlers
    run.
    """

    _INITIALIZED = 2  # RL_STATE_INITIALIZED
    _PREPARED = 4  # RL_STATE_TERMPREPPED

    def __init__(self) -> None:
        import ctypes

        if "libedit" in (readline.__doc__ or ""):
            raise ImportError("libedit has other functions")
        library = ctypes.PyDLL(getattr(readline, "__file__", None))  # None: Python itself, if it is linked statically
        self._state = ctypes.c_ulong.in_dll(library, "rl_readline_state")
        self._flush = library.fflush  # the library writes with C's streams, and leaves some of it in their buffers
        self._clear = library.rl_clear_visible_line
        self.redraw = library.rl_forced_update_display
        self._measure = library.rl_reset_screen_size
        self._prepare = library.rl_prep_terminal
        self._restore = library.rl_deprep_terminal
        self.show_keys = functools.partial(library.rl_tty_set_echoing, 1)
        """A startup hook: show what is typed, though the terminal does not. It runs no Python code, in which a signal
        handler's exception would be lost."""

    def is_prepared(self) -> bool:
        """Whether the prompt is shown."""
        return bool(self._state.value & self._PREPARED)

    def clear(self) -> None:
        """Remove the prompt and the line from the screen, however many rows they take."""
        self._clear()
        self._flush(None)

    def measure(self) -> None:
        """Ask the terminal for its size. While this process was stopped, changes were reported to the shell only."""
        if self._state.value & self._INITIALIZED:  # else it has no stream to ask
            self._measure()

    def prepare(self) -> None:
        """Set the terminal up again, from the settings that it has now."""
        self._restore()
        self._prepare(1)
        self.show_keys()
        self._flush(None)

    def restore(self) -> None:
        """Set the terminal to what it was before the prompt; do nothing if that has been done."""
        self._restore()
        self._flush(None)


class PlainEditor(_TerminalEditor):
    """An editor for a Python without readline. It has the keys of a terminal that edits lines: erase, word erase, kill,
    literal next and end of file. The user may have changed them with stty(1)."""

    def __init__(self) -> None:
        super().__init__()
        indices = (termios.VERASE, termios.VWERASE, termios.VKILL, termios.VLNEXT, termios.VEOF)
        keys = self._original[6]
        self._erase, self._word_erase, self._kill, self._literal_next, self._end = (keys[index] for index in indices)
        self._typed = b""  # and not used yet
        self._line = bytearray()
        self._shown = ""
        self._is_literal = False
        self._waits = False
        self._is_lost = False
        """The prompt has to be shown again: the shell has used the screen between two waits."""

    def read(self) -> bytes:
        self._line, self._shown, self._is_literal = bytearray(), "", False
        try:
            self._is_lost = False  # first: the process may be stopped right after the prompt
            _write(PROMPT)
            while not self._edit():
                self._typed = self._wait()
        finally:
            _write("\n")
        return bytes(self._line)

    def waits(self) -> bool:
        return self._waits

    def above(self, text: str) -> None:
        if self._is_lost:  # the process has just gone on; what is on the screen is the shell's
            _write(f"\r{text}\n")
        else:
            _write(f"{self._leave_line()}{text}\n{PROMPT}{self._shown}")

    def take_terminal(self) -> None:
        super().take_terminal()
        self._is_lost = True
        self._show_again()

    def release_terminal(self) -> None:
        self._is_lost = True
        super().release_terminal()

    def _show_again(self) -> None:
        if self._waits and self._is_lost:
            self._is_lost = False
            _write(f"\r{PROMPT}{self._shown}")

    def _wait(self) -> bytes:
        self._waits = True
        try:
            self._show_again()
            select.select([self._descriptor], [], [])
        finally:
            self._waits = False
        try:
            data = streams.read(self._descriptor, 4096)
        except OSError:  # the terminal is gone
            data = b""
        if not data:
            raise EOFError
        return data

    def _edit(self) -> bool:
        """Apply the typed keys and show the line; return whether it is complete."""
        try:
            while self._typed:
                key, self._typed = self._typed[:1], self._typed[1:]
                if key in (b"\r", b"\n") and not self._is_literal:
                    return True
                self._apply_key(key)
            return False
        finally:
            self._show(_as_written(escape(whole_letters(bytes(self._line)), exact=False).expandtabs()))

    def _apply_key(self, key: bytes) -> None:
        if self._is_literal or key == b"\0":  # which stands for a key that is switched off
            self._line += key
            self._is_literal = False
        elif key == self._literal_next:
            self._is_literal = True
        elif key in (self._erase, b"\b", b"\x7f"):
            letters = self._line.decode("utf-8", "surrogateescape")  # a byte that is part of no letter counts as one
            self._line[:] = letters[:-1].encode("utf-8", "surrogateescape")
        elif key == self._word_erase:
            words = self._line.rstrip()
            del self._line[max(words.rfind(b" "), words.rfind(b"\t")) + 1 :]
        elif key == self._kill:
            self._line.clear()
        elif key != self._end:
            self._line += key
        elif not self._line:
            raise EOFError

    def _show(self, text: str) -> None:
        if text.startswith(self._shown):
            _write(text[len(self._shown) :])
        else:
            rows, column = self._end_of_line()
            if self._dumb and not rows:
                _write("\r" + " " * column + "\r")
            else:
                _write(self._leave_line())
            _write(PROMPT + text)
        self._shown = text

    def _leave_line(self) -> str:
        """Characters that remove prompt and line from the screen, or leave them above."""
        if self._dumb:
            return "\n"
        rows, _ = self._end_of_line()
        return (f"\x1b[{rows}A" if rows else "") + "\r\x1b[J"

    def _end_of_line(self) -> "tuple[int, int]":
        """Where the cursor is: rows below the prompt, and column."""
        columns = os.get_terminal_size(self._descriptor).columns or 80
        row = column = 0
        for character in PROMPT + self._shown:
            width = _width(character)
            if column + width > columns:
                row, column = row + 1, 0
            column += width
        return row, column


def _width(character: str) -> int:
    """Columns that a terminal gives to it."""
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    if "\u1160" <= character <= "\u11ff" or "\ud7b0" <= character <= "\ud7ff":
        return 0  # a vowel or final consonant of Hangul, which joins the letter before it
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _as_written(text: str) -> str:
    """The text that standard output shows: letters that its encoding does not have are escaped."""
    encoding = sys.stdout.encoding
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def line_editor() -> Editor:
    """The best editor for this system and this Python."""
    if termios is None:
        return Editor()
    return PlainEditor() if readline is None else ReadlineEditor()
