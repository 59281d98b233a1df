"""`python -m fastdiff_lab`: the command line of a checkout."""

from .cli.commands import main

main()
