"""Measuring: probes that are recognised when they come back, one after the other (``ping``) or as a load (``bench``).

``probes``, ``stream`` and ``distribution`` know no socket. ``lane`` is one connection that carries probes, ``load``
keeps many of them busy, and ``renewing`` opens them again, by means of ``dialer``. ``ping`` and ``bench`` plan and
report; ``outages``, ``intervals`` and ``series`` are about time. ``figures`` turns durations into text and JSON fields,
``summary`` is a load's result, ``conditions`` checks it, ``progress`` is the line at a terminal, ``report`` prints.
Other modules turn a finished summary's ``document``, the JSON that is printed, into something else: ``page`` (with
``chart``), ``histogram_file``, ``differences``, ``merging``.

Nothing is imported here: the client command needs ``report`` at each start, and ``bench`` needs ``multiprocessing``,
which takes long to import.
"""
