"""The version, in one place: ``setup.cfg`` and both command lines read it here."""

__version__ = "0.2.0"
