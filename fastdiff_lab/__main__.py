"""`python -m fastdiff_lab`: the command line where the package is a checkout and not installed."""

from .cli.commands import main

main()
