"""Complete commands by the Tab key: a line for ~/.bashrc or ~/.zshrc is `eval "$(zfdist completion)"`.

The shell asks `zfdist completion WORD ...` for what may follow; nothing heavier than --help of a command is imported.
"""

import contextlib
import io
import re
import sys
from collections.abc import Sequence

from jobs.__main__ import main as front_door
from jobs.__main__ import verbs
from zfdist.recipes import RECIPES

_SCRIPT = r"""
if [ -n "$ZSH_VERSION" ]; then autoload -U +X compinit bashcompinit && compinit -u && bashcompinit; fi
_zfdist() {
    local IFS=$'\n'
    COMPREPLY=($(zfdist completion "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -F _zfdist zfdist
"""
_OF_RECIPES = ("train", "sweep")


def main(argv: Sequence[str]) -> int:
    """Print the shell's part; or of words typed after `zfdist`, the last one unfinished, what that may become."""
    if tuple(argv) in (("-h",), ("--help",)):
        print(__doc__.strip())
    elif not argv:
        print(_SCRIPT.strip())
    else:
        print("\n".join(_following(argv[:-1], argv[-1])))
    return 0


def _following(before: Sequence[str], begun: str) -> list[str]:
    """Return what may follow the words `before` and begins with `begun`; nothing where that may be a file."""
    words: Sequence[str] = []
    if not before:
        words = verbs()
    elif before[0] not in verbs():
        words = []
    elif begun.startswith("-"):
        words = _flags(before)
    elif len(before) == 1 and before[0] in _OF_RECIPES:
        words = list(RECIPES)
    return [word for word in words if word.startswith(begun)]


def _flags(words: Sequence[str]) -> list[str]:
    """Return the flags that the help of a command names: of a recipe's or source's, where one is among the words."""
    named = [word for word in words if not word.startswith("-")][:2]
    for command in (named, named[:1]):
        with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(io.StringIO()):
            code = front_door([*command, "--help"])
        if code == 0 and (found := re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", said.getvalue())):
            return sorted(set(found))
    return []


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
