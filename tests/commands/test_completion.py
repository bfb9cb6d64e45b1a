"""``--print-completion``: the scripts in real shells."""

import os
import subprocess

import pytest

from echo.cli.client import command as client_command
from echo.cli.completion import SHELLS
from echo.cli.server import options as server_options
from support import DEADLINE
from support.terminal import OWN_TERMINAL, Terminal

MANUALS = [server_options.MANUAL, client_command.MANUAL]
manuals = pytest.mark.parametrize("manual", MANUALS, ids=["server", "client"])


def script_for(shell, manual=server_options.MANUAL):
    return SHELLS[shell](manual.script, manual.groups)


@manuals
@pytest.mark.parametrize("shell", SHELLS)
def test_each_script_has_every_option_and_every_value_that_has_a_name(shell, manual):
    script = script_for(shell, manual)
    for row in [row for group in manual.groups for row in group.rows]:
        for flag in row.flags:
            assert (f"-{'l' if flag[:2] == '--' else 's'} {flag.strip('-')} " if shell == "fish" else flag) in script
        assert " ".join(row.words) in script


def test_what_is_completed_follows_from_the_names_of_the_rows():
    rows = {row.names: row for group in server_options.GROUPS for row in group.rows}
    assert rows["--framing line|crlf|length|raw"].choices == ["line", "crlf", "length", "raw"]
    affinity = rows["--cpu-affinity LIST|auto|off"]
    assert (affinity.choices, affinity.words, affinity.read("0,2")) == ([], ["auto", "off"], [0, 2])


@pytest.mark.parametrize(
    "shell",
    [pytest.param(shell, marks=pytest.mark.needs_programs(shell)) for shell in SHELLS],
)
@manuals
def test_each_script_is_correct_for_its_shell(shell, manual):
    checked = subprocess.run(
        [shell, "-n"], input=script_for(shell, manual).encode(), stderr=subprocess.PIPE, timeout=DEADLINE
    )
    assert (checked.returncode, checked.stderr) == (0, b"")


@pytest.fixture
def folder(tmp_path):
    """Files to be completed, as the current folder."""
    (tmp_path / "office.txt").touch()
    (tmp_path / "my file.pem").touch()
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "banned").touch()
    return tmp_path


def answers(folder, *command, script):
    done = subprocess.run(
        command,
        cwd=str(folder),
        env=dict(os.environ, HOME=str(folder), LC_ALL="C.UTF-8"),
        input=script.encode(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        timeout=DEADLINE,
    )
    assert done.stderr == b""
    return [sorted(filter(None, line.split("\t"))) for line in done.stdout.decode().splitlines()]


SEVERAL = [
    ("--merge o", {"office.txt"}),
    ("--merge office.txt m", {"my file.pem"}),
    ("--merge office.txt office.txt o", {"office.txt"}),
    ("--merge office.txt --hist", {"--histogram"}),
    ("--merge office.txt --hdr office.txt o", set()),
    ("-m o", set()),
]
"""Questions to the client: an option may take several files."""

QUESTIONS = [
    ("--frami", {"--framing"}),
    ("--framing ", {"line", "crlf", "length", "raw"}),
    ("--framing l", {"line", "length"}),
    ("--framing=l", {"line", "length"}),
    ("-q --log-format=", {"text", "json"}),
    ("--workers ", {"auto"}),
    ("--cpu-affinity o", {"off"}),
    ("-b ", set()),
    ("--bind l", set()),
    ("--handler o", set()),
    ("o", set()),
    ("", set()),
    ("--tls-cert o", {"office.txt"}),
    ("--tls-cert=o", {"office.txt"}),
    ("--tls-cert m", {"my file.pem"}),
    ("--unix lists/", {"lists/banned"}),
    ("--allow o", set()),
    ("--allow @o", {"@office.txt"}),
    ("--allow=@o", {"@office.txt"}),
    ("--deny @lists/", {"@lists/banned"}),
    ("--deny @l", {"@lists/"}),
]


def split(line, breaks):
    """The words of a line as bash passes them to a completion; the one at the cursor may be empty."""
    words = [""]
    for letter in line:
        if letter == " ":
            words.append("")
        elif (letter in breaks) != (words[-1][-1:] in breaks) and words[-1]:
            words.append(letter)
        else:
            words[-1] += letter
    return words


def asked_in_bash(script, questions, breaks):
    asked = "".join(
        f"COMP_WORDS=({script} {' '.join(map(repr, split(line, breaks)))})\nCOMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))\n"
        f"_{script.replace('-', '_')}\n(IFS=$'\\t'; echo \"${{COMPREPLY[*]}}\")\n"
        for line, _ in questions
    )
    return f"compopt() {{ :; }}\nCOMP_WORDBREAKS={breaks!r}\n{asked}"


@pytest.mark.needs_programs("bash")
@pytest.mark.parametrize("breaks", ["=", "=@"], ids=["usual", "with host names"])
def test_bash_completes_options_values_and_files(folder, breaks):
    script = script_for("bash") + asked_in_bash("echo-server", QUESTIONS, breaks)
    assert answers(folder, "bash", "--norc", script=script) == [sorted(words) for _, words in QUESTIONS]


@pytest.mark.needs_programs("bash")
def test_bash_completes_each_file_of_several(folder):
    script = script_for("bash", client_command.MANUAL) + asked_in_bash("echo-client", SEVERAL, "=")
    assert answers(folder, "bash", "--norc", script=script) == [sorted(words) for _, words in SEVERAL]


def asked_in_fish(script, questions):
    return "".join(
        f"echo (complete -C '{script} {line}' | string split -f 1 \\t | string join \\t)\n" for line, _ in questions
    )


@pytest.mark.needs_programs("fish")
def test_fish_completes_options_values_and_files(folder):
    """fish offers the whole word, with its ``--option=``."""
    expected = []
    for line, words in QUESTIONS:
        option, equals, _ = line.rpartition(" ")[2].partition("=")
        expected.append(sorted(f"{option}=" + word if equals else word for word in words))
    script = script_for("fish") + asked_in_fish("echo-server", QUESTIONS)
    assert answers(folder, "fish", "--no-config", script=script) == expected


@pytest.mark.needs_programs("fish")
def test_fish_completes_each_file_of_several(folder):
    script = script_for("fish", client_command.MANUAL) + asked_in_fish("echo-client", SEVERAL)
    assert answers(folder, "fish", "--no-config", script=script) == [sorted(words) for _, words in SEVERAL]


# In a terminal: there bash also splits words at @, and zsh completes nowhere else.

TYPED = [
    (b"--no-l\t", ["--no-log-messages"]),
    (b"7000 --framing le\t", ["7000", "--framing", "length"]),
    (b"--log-format=j\t", ["--log-format=json"]),
    (b"--tls-cert my\t", ["--tls-cert", "my file.pem"]),
    (b"--tls-cert=my\t", ["--tls-cert=my file.pem"]),
    (b"--allow @off\t", ["--allow", "@office.txt"]),
    (b"--allow=@off\t", ["--allow=@office.txt"]),
    (b"--allow @my\t", ["--allow", "@my file.pem"]),
    (b"--deny @li\t", ["--deny", "@lists/"]),
    (b"--deny @lists/b\t", ["--deny", "@lists/banned"]),
    (b"--bind off\t", ["--bind", "off"]),
    (b"off\t", ["off"]),
]
SHOW = "printf '%s\\n' 'It got:' "
END = " 'and this is all.'"
BASH = f"""\
echo-server() {{ {SHOW} "$@" {END}; }}
"""
ZSH = f"""\
autoload -Uz compinit
compinit -u -D
complete-and-show() {{ zle complete-word; zle -I; {SHOW} ${{(Q)${{(z)BUFFER#echo-??????}}}} {END}; BUFFER=; }}
zle -N complete-and-show
bindkey '\\t' complete-and-show
"""  # it does not complete if further keys have already come
SHELL_STARTS = [
    pytest.param("bash", BASH + ". ./completion", b"\n", id="bash", marks=pytest.mark.needs_programs("bash")),
    pytest.param("zsh", ZSH + ". ./completion", b"", id="zsh", marks=pytest.mark.needs_programs("zsh")),
    pytest.param("zsh", "fpath=($PWD $fpath)\n" + ZSH, b"", id="fpath", marks=pytest.mark.needs_programs("zsh")),
]
COMMANDS = {"bash": ["bash", "--norc", "--noprofile", "-i"], "zsh": ["zsh", "-f", "-i"]}
STARTER = OWN_TERMINAL.replace(
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])", "os.execvp(sys.argv[2], sys.argv[2:])"
)


def try_typing(cases, script, folder, shell, setup, enter, run):
    (folder / "setup").write_text(f"cd {folder}\n{setup}\necho it is 'ready.'\n")
    terminal = Terminal(run, *COMMANDS[shell], starter=STARTER, HOME=str(folder))
    terminal.type(f". {folder}/setup\n".encode())
    terminal.until(b"it is ready.")
    for keys, words in cases:
        terminal.type(script + b" " + keys + enter)
        got = terminal.until(rb"(?s)It got:\r\n(.*?)and this is all\.")[1].decode().splitlines()
        assert got == words
    terminal.kill()


@pytest.mark.parametrize("shell, setup, enter", SHELL_STARTS)
def test_the_tab_key_completes_in_a_terminal(folder, shell, setup, enter, run):
    for name in ("completion", "_echo-server"):
        (folder / name).write_text(script_for(shell))
    try_typing(TYPED, b"echo-server", folder, shell, setup, enter, run)


@pytest.mark.needs_programs("zsh")
def test_zsh_completes_each_file_of_several(folder, run):
    (folder / "completion").write_text(script_for("zsh", client_command.MANUAL))
    cases = [
        (b"--merge office.txt my\t", ["--merge", "office.txt", "my file.pem"]),
        (b"--merge office.txt --hist\t", ["--merge", "office.txt", "--histogram"]),
        (b"my\t", ["my"]),
    ]
    try_typing(cases, b"echo-client", folder, "zsh", ZSH + ". ./completion", b"", run)
