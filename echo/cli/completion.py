"""``--print-completion``: scripts that complete the options of an installed command in bash, zsh and fish.

They are made from the rows: the names of options, the values that have a name, and files where a value is one. They
start no process, so completing is never slow.
"""

from __future__ import annotations

import re
import shlex
from typing import Callable, Dict, List, Sequence

from .arguments import Group, Row

# The function gets a line that bash has split at = and, in a terminal, at @: "--allow", "=@", "FILE". The words that it
# offers begin after the =, but with the @.
_BASH = """\
# bash completion of {script}. To load it at each start of bash, add this line to ~/.bashrc:
#     source <({script} --print-completion bash)
{function}() {{
    local IFS=$'\\n' current=${{COMP_WORDS[COMP_CWORD]}} at= last=$((COMP_CWORD - 1)) word
    COMPREPLY=()
    if [[ $current == = || $current == =@ || $current == @ ]]; then
        last=$COMP_CWORD
        current=
    fi
    if [[ $current == @* || ${{COMP_WORDS[last]}} == *@ ]]; then
        at=@
        current=${{current#@}}
    fi
    if [[ ${{COMP_WORDS[last]}} == [=@]* ]]; then last=$((last - 1)); fi
    if [[ ${{COMP_WORDS[last]}} == = ]]; then last=$((last - 1)); fi
    case ${{COMP_WORDS[last]}} in
{cases}
    esac
    if [[ $current == -* ]]; then
        {function}_words {names}
        return
    fi
    while ((last > 0)) && [[ ${{COMP_WORDS[last]}} != -* ]]; do last=$((last - 1)); done
    case ${{COMP_WORDS[last]}} in
        {several}) {function}_files ;;
    esac
}}
{function}_words() {{
    while read -r word; do COMPREPLY+=("$word"); done < <(compgen -W "$*" -- "$current")
}}
{function}_files() {{
    if [[ ! $at ]]; then compopt -o filenames 2>/dev/null; fi # bash 3.2 does not have it
    while read -r word; do
        if [[ $at ]]; then # such a word is not the name of a file
            if [[ -d $word ]]; then
                word+=/
                compopt -o nospace 2>/dev/null
            fi
            printf -v word '@%q' "$word"
        fi
        COMPREPLY+=("$word")
    done < <(compgen -f -- "$current")
}}
complete -F {function} {script}
"""


def bash(script: str, groups: Sequence[Group]) -> str:
    """For bash 3.2, which macOS has, and later."""
    function = _function(script)
    actions = f"{function}_files", f"if [[ $at ]]; then {function}_files; fi", ""
    rows = _rows(groups)
    cases: Dict[str, List[str]] = {}
    for row in rows:
        if row.value:
            offered = f"{function}_words {' '.join(row.words)}" if row.words else _action(row, *actions)
            cases.setdefault(offered, []).extend(row.flags)
    lines = [
        f"        {' | '.join(flags)}) {offered}{'; ' if offered else ''}return ;;" for offered, flags in cases.items()
    ]
    names = " ".join(flag for row in rows for flag in row.flags)
    several = " | ".join(_several(rows)) or "''"
    return _BASH.format(script=script, function=function, cases="\n".join(lines), names=names, several=several)


_ZSH = """\
#compdef {script}
# zsh completion of {script}. To load it at each start of zsh, add this line to ~/.zshrc, after compinit:
#     source <({script} --print-completion zsh)
# or save it as _{script} in a folder of $fpath.
_{script}() {{
    _arguments -s -S \\
{specs}
}}
if [[ $funcstack[1] == _{script} ]]; then # loaded from a folder of $fpath, once
    _{script} "$@"
else
    compdef _{script} {script}
fi
"""


def zsh(script: str, groups: Sequence[Group]) -> str:
    """For zsh, whose ``_arguments`` does the work."""
    rows = _rows(groups)
    modes = [flag for row in rows if row.mode for flag in row.flags]
    specs = []
    for row in rows:
        action = f"({' '.join(row.words)})" if row.words else _action(row, "_files", "{compset -P @ && _files}", " ")
        value = f":{row.value.replace(':', chr(92) + ':')}:{action}" if row.value else ""
        about = re.sub(r"([\[\]\\])", r"\\\1", _about(row))
        excluded = [flag for flag in modes if flag not in row.flags] if row.mode else []
        excluded += [] if row.many else row.flags
        for flag in row.flags:
            joined = "" if not row.value else "=" if flag.startswith("--") else "+"
            specs.append(f"({' '.join(excluded)}){'*' if row.many else ''}{flag}{joined}[{about}]{value}")
    several = "|".join(_several(rows))
    files = f"(( $words[(I)({several})] )) && _files" if several else ":"
    specs.append(f"*: :{{{files}}}")  # with an action of " " options would be listed and not inserted
    lines = " \\\n".join(f"        {shlex.quote(spec)}" for spec in specs)
    return _ZSH.format(script=script, specs=lines)


_FISH = """\
# fish completion of {script}. Save it as ~/.config/fish/completions/{script}.fish:
#     {script} --print-completion fish > ~/.config/fish/completions/{script}.fish
function {function}_at
    set -l path (commandline -ct | string replace -r -- '^--[a-z-]+=' '')
    if string match -q -- '@*' $path
        __fish_complete_path (string sub -s 2 -- $path) | string replace -r -- '^' @
    end
end
function {function}_several
    for word in (commandline -opc)[-1..1]
        if string match -q -- '-*' $word
            contains -- $word {several}
            return
        end
    end
    return 1
end
complete -c {script} -f
complete -c {script} -n {function}_several -F
{lines}
"""


def fish(script: str, groups: Sequence[Group]) -> str:
    """For fish 3.0 and later."""
    function = _function(script)
    lines = []
    for row in _rows(groups):
        names = [f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in row.flags]
        words = f"-x -a '{' '.join(row.words)}'" if row.words else _action(row, "-rF", f"-x -a '({function}_at)'", "-x")
        about = _about(row).replace("\\", "\\\\").replace("'", "\\'")
        if names:
            value = [words] if row.value else []
            lines.append(" ".join([f"complete -c {script}", *names, *value, f"-d '{about}'"]))
    several = " ".join(_several(_rows(groups)))
    return _FISH.format(script=script, function=function, lines="\n".join(lines), several=several)


def _action(row: Row, file: str, at_file: str, nothing: str) -> str:
    """The one of these actions that completes a value without names."""
    parts = row.value.split("|")
    return at_file if "@FILE" in parts else file if parts[0] in ("FILE", "PATH") else nothing


def _about(row: Row) -> str:
    return row.meaning.partition(";")[0]


def _several(rows: Sequence[Row]) -> List[str]:
    """The options that take several files."""
    return [flag for row in rows if row.several for flag in row.flags]


def _rows(groups: Sequence[Group]) -> List[Row]:
    return [row for group in groups for row in group.rows]


def _function(script: str) -> str:
    return "_" + re.sub(r"\W", "_", script)


SHELLS: Dict[str, Callable[[str, Sequence[Group]], str]] = {"bash": bash, "zsh": zsh, "fish": fish}
