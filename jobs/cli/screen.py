"""Where tables are printed: as wide as the terminal, or as a file may be; and to nobody, once the reader has gone."""

import sys

from rich.console import Console

from jobs.cli.command import reader_has_gone


class Screen(Console):
    """A console of rich for stdout; `| head` ends what is printed there, and not what is being done."""

    def __init__(self, width: int) -> None:
        """`width` is that off a terminal, in columns."""
        super().__init__(width=None if sys.stdout.isatty() else width)

    def on_broken_pipe(self) -> None:
        """Go on: rich would end the program."""
        reader_has_gone()
