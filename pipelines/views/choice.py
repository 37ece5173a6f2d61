"""Which view a run has, by what it is asked for and where it is started."""

from __future__ import annotations

import sys

from rich.console import Console

from omniloom.pipelines.views.bars import Bars
from omniloom.pipelines.views.events import View
from omniloom.pipelines.views.lines import Errors, JsonLines, Lines


def chosen(quiet: bool = False, log_json: bool = False) -> View:
    """JSON goes to standard output; bars and lines to standard error, where a pipe does not take them along. Whether
    that is a terminal nothing in the environment says better than itself."""
    terminal = sys.stderr.isatty()
    console = Console(stderr=True, force_terminal=terminal)
    if log_json:
        view: View = JsonLines(sys.stdout)
    elif terminal and not quiet and not console.is_dumb_terminal:
        return Bars(console)
    else:
        view = Lines(console)
    return Errors(view) if quiet else view
