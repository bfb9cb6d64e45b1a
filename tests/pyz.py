"""``echo.pyz``: the package in one file, which any Python from 3.8 on runs.

    python3 tests/pyz.py [FILE]          # default: dist/echo.pyz
    python3 dist/echo.pyz server

The same sources give the same file, byte for byte: it has no times of files, and its members are sorted.
``python3 -m zipapp`` keeps the times, and would include any other file in the folder.
"""

import os
import stat
import sys
import zipfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

SHEBANG = b"#!/usr/bin/env python3\n"

MAIN = b"import sys\nfrom echo.__main__ import main\nsys.exit(main())\n"

MOMENT = (1980, 1, 1, 0, 0, 0)
"""The earliest time that the format has."""


def members():
    """The names in the archive, sorted, and where each file lies."""
    yield "LICENSE", os.path.join(ROOT, "LICENSE")
    for folder, folders, files in os.walk(os.path.join(ROOT, "echo")):
        folders.sort()
        for file in sorted(files):
            if file.endswith((".py", ".typed")):
                path = os.path.join(folder, file)
                yield os.path.relpath(path, ROOT).replace(os.sep, "/"), path


def build(target):
    """Write the archive to the path ``target``."""
    with open(target, "wb") as file:
        file.write(SHEBANG)
        with zipfile.ZipFile(file, "w") as archive:
            add(archive, "__main__.py", MAIN)
            for name, path in members():
                with open(path, "rb") as source:
                    add(archive, name, source.read())
    os.chmod(target, os.stat(target).st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)


def add(archive, name, data):
    info = zipfile.ZipInfo(name, MOMENT)
    info.create_system = 3  # POSIX, also where this runs on Windows
    info.external_attr = (stat.S_IFREG | 0o644) << 16
    archive.writestr(info, data, zipfile.ZIP_DEFLATED)


def main(target):
    folder = os.path.dirname(target)
    if folder:
        os.makedirs(folder, exist_ok=True)
    build(target)
    print(f"{target}: {os.path.getsize(target)} bytes")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else os.path.join("dist", "echo.pyz"))
