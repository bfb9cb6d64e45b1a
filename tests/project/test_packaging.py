"""The release: the wheel holds only the package, the source archive also all that its checks need, and the wheel's
commands run in an empty environment, away from this folder.

Nothing is downloaded: the build tools have to be installed (``pip install 'setuptools>=61' '.[release]'``).
"""

import configparser
import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

import echo
import matrix
from support import DEADLINE, ROOT


def released_by_build(test):
    """Marks a test of what ``build`` makes, without downloads."""
    test = pytest.mark.slow(test)
    test = pytest.mark.needs_modules("build.env", "setuptools", "wheel")(test)  # a folder "build" is not the module
    return pytest.mark.timeout(DEADLINE * 15)(test)  # builds and installations take their time on a busy machine


NOT_RELEASED = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info")


def called(*command, cwd):
    """Run it without the Python flags of this run, which pip and similar programs cannot take."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        command,
        cwd=str(cwd),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        universal_newlines=True,
        timeout=DEADLINE * 10,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """The folder with both. The wheel is built from the source archive, so that has everything that a build needs."""
    folder = tmp_path_factory.mktemp("release")
    shutil.copytree(ROOT, str(folder / "source"), ignore=NOT_RELEASED)
    called(sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist", "source", cwd=folder)
    return folder / "dist"


@pytest.fixture(scope="module")
def wheel(released):
    (path,) = released.glob("*.whl")
    return path


def metadata_file(wheel, name):
    with zipfile.ZipFile(str(wheel)) as archive:
        (path,) = [path for path in archive.namelist() if path.endswith(f".dist-info/{name}")]
        return archive.read(path).decode()


def source_files(*folders):
    """The package's files in this folder, relative to the root."""
    found = set()
    for folder in folders:
        for path, names, files in os.walk(os.path.join(ROOT, folder)):
            names[:] = [name for name in names if not name.startswith((".", "__pycache__"))]
            found |= {os.path.relpath(os.path.join(path, file), ROOT).replace(os.sep, "/") for file in files}
    return {path for path in found if not path.endswith((".pyc", ".pyo"))}


@released_by_build
def test_the_wheel_holds_the_package_its_types_and_its_licence_alone(wheel):
    with zipfile.ZipFile(str(wheel)) as archive:
        names = set(archive.namelist())
    metadata = {name for name in names if re.match(r"echo_server_framework-[^/]+\.dist-info/", name)}
    assert names - metadata == source_files("echo")
    assert "echo/py.typed" in names
    assert any(name.endswith("/LICENSE") for name in metadata)


@released_by_build
def test_the_wheel_is_for_every_python_3(wheel):
    assert wheel.name == f"echo_server_framework-{echo.__version__}-py3-none-any.whl"


@released_by_build
def test_the_archive_of_the_source_holds_what_it_takes_to_check_it(released):
    (path,) = released.glob("*.tar.gz")
    with tarfile.open(str(path)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert path.name.replace("-", "_") == f"echo_server_framework_{echo.__version__}.tar.gz"  # some tools write hyphens
    assert source_files("docs", "echo", "examples", "tests") <= names
    assert {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "pyproject.toml", "setup.cfg"} <= names
    assert {"docs/man/echo-server.1", "docs/man/echo-client.1"} <= names
    assert not [name for name in names if name.endswith(".pyc") or name.startswith(".")]


@released_by_build
def test_the_metadata_says_what_is_known(wheel):
    metadata = email.message_from_string(metadata_file(wheel, "METADATA"))
    assert (metadata["Name"], metadata["Version"]) == ("echo-server-framework", echo.__version__)
    assert metadata["Requires-Python"] == ">=3.8"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert (metadata["License"] or metadata["License-Expression"]) == "MIT"
    assert metadata["License-File"] == "LICENSE"
    assert metadata["Summary"] and metadata["Keywords"]
    assert all("extra ==" in needed for needed in metadata.get_all("Requires-Dist"))  # it has no dependencies
    classifiers = metadata.get_all("Classifier")
    assert "Typing :: Typed" in classifiers
    assert any(classifier.startswith("Operating System :: ") for classifier in classifiers)
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
        assert metadata.get_payload().strip() == file.read().strip()


@released_by_build
def test_the_commands_are_named(wheel):
    entry_points = configparser.ConfigParser()
    entry_points.read_string(metadata_file(wheel, "entry_points.txt"))
    assert set(entry_points["console_scripts"]) == {"echo-server", "echo-client"}


def test_the_changelog_begins_with_this_version():
    with open(os.path.join(ROOT, "CHANGELOG.md"), encoding="utf-8") as file:
        first = re.search(r"^## \[(.+)\] - (Unreleased|\d{4}-\d\d-\d\d)$", file.read(), re.MULTILINE)
    assert first and first[1] == echo.__version__


@released_by_build
@pytest.mark.needs_modules("twine")
def test_an_index_would_take_both(released):
    told = called(sys.executable, "-m", "twine", "check", "--strict", *map(str, released.iterdir()), cwd=released)
    assert told.count("PASSED") == 2


@pytest.fixture(scope="module")
def pythons():
    """The paths of the oldest Python here and the newest."""
    found = list(matrix.find_pythons(matrix.candidates()).values())
    return {"oldest": found[0], "newest": found[-1]}


@released_by_build
@pytest.mark.skipif(os.name != "posix", reason="the environment's commands lie elsewhere")
@pytest.mark.parametrize("age", ["oldest", "newest"])
def test_the_commands_run_from_the_wheel_in_an_empty_environment(age, pythons, wheel, run, tmp_path):
    called(pythons[age][0], "-m", "venv", "environment", cwd=tmp_path)
    commands = tmp_path / "environment" / "bin"
    called(str(commands / "python"), "-m", "pip", "install", "-q", "--no-index", str(wheel), cwd=tmp_path)
    options = {"cwd": str(tmp_path), "env": {"PYTHONPATH": None}}

    where = run("import echo; print(echo.__file__)", program=[str(commands / "python"), "-c"], **options)
    code, path = where.finish()
    assert code == 0 and path.decode().startswith(str(tmp_path)), where.log

    server = run("0", program=[str(commands / "echo-server")], **options)
    port = server.read_log_until(r"listening on \S+:(\d+)").group(1)
    client = run("127.0.0.1", port, "-m", "hello", program=[str(commands / "echo-client")], **options)
    assert client.finish() == (0, b"hello\n"), client.log
    assert server.terminate() == 0
    for command in ("echo-server", "echo-client"):
        version = run("--version", program=[str(commands / command)], **options)
        assert version.finish() == (0, f"{command} {echo.__version__}\n".encode())
        refused = run("--nonsense", program=[str(commands / command)], **options)
        assert refused.finish() == (2, b"")
        assert refused.log == f"{command}: unrecognized arguments: --nonsense; see --help\n"
        module = command.replace("-", ".")
        version = run(module, "--version", program=[str(commands / "python"), "-m"], **options)
        assert version.finish() == (0, f"{module} {echo.__version__}\n".encode())
