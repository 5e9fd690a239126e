"""`--help` of a command: a panel for each group of its options."""

import inspect
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from typer.core import TyperArgument, TyperCommand

_WIDEST = 34
"""Characters of an option's name and what it takes."""


class Command(TyperCommand):
    """A command whose help is as wide as the terminal and as it was written.

    typer's own has columns for each part of an option, which leave little of 80 characters to its explanation, breaks
    lines where the source does, and takes brackets for markup.
    """

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print it, as typer's does."""
        console = Console(markup=False, emoji=False, highlight=False)
        paragraphs = inspect.cleandoc(self.help or "").split("\n\n")
        for paragraph in (self.get_usage(ctx), *paragraphs):
            console.print(" ".join(paragraph.split()), end="\n\n")
        panels = {"Arguments": _table(), "Options": _table()}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                usual = "Arguments" if isinstance(parameter, TyperArgument) else "Options"
                name = getattr(parameter, "rich_help_panel", None) or usual
                row = record[0].replace(" range>", ">"), " ".join(record[1].split())
                panels.setdefault(name, _table()).add_row(*row)
        for name, table in panels.items():
            if table.row_count:
                console.print(Panel(table, title=name, title_align="left", border_style="dim"))


def _table() -> Table:
    table = Table.grid(padding=(0, 2), expand=True)
    table.add_column(style="bold cyan", max_width=_WIDEST, overflow="fold")
    table.add_column(ratio=1)
    return table
