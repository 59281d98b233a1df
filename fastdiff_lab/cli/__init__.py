"""The command line."""

from ..inputs.extras import check_installed

check_installed("typer", "cli", "the command line")
