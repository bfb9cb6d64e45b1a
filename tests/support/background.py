"""A function that runs in a thread while the test goes on."""

import threading

from . import DEADLINE


class Background:
    """``function(...)`` in a thread. ``result`` waits for its end, and returns its value or raises its exception."""

    def __init__(self, function, *arguments, **options):
        self._value = self._error = None
        self._thread = threading.Thread(target=self._run, args=(function, arguments, options), daemon=True)
        self._thread.start()

    def _run(self, function, arguments, options):
        try:
            self._value = function(*arguments, **options)
        except BaseException as exc:
            self._error = exc

    def result(self):
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive(), "it did not end"
        if self._error is not None:
            raise self._error
        return self._value
