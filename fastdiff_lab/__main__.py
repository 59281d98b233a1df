"""The command line: `fastdiff-lab`, or `python -m fastdiff_lab` from a checkout."""

import sys


def main() -> None:
    """Run the command line; where its packages are missing, say what to install."""
    try:
        from .cli.commands import main as run
    except ModuleNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    run()


if __name__ == "__main__":
    main()
