"""Packages that not every installation has: one sentence for each that is missing.

- `extra(name, asked)`: a block of imports
- `check_installed(package, name, asked)`: for a package that another process imports
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec


@contextmanager
def extra(name: str, asked: str) -> Iterator[None]:
    """Import optional packages inside the block; one that is missing is named with the extra that brings it.

    >>> with extra("lab", "a plot"):
    ...     import no_such_package
    Traceback (most recent call last):
    ModuleNotFoundError: a plot needs no_such_package, which is not installed; get the extra lab: pip install "fastdiff-lab[lab]"

    Args:
        name: an extra of pyproject.toml.
        asked: what was asked, as the sentence begins.

    Raises:
        ModuleNotFoundError: with that sentence.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise _missing(str(error.name).partition(".")[0], name, asked) from error


def check_installed(package: str, name: str, asked: str) -> None:
    """Refuse what needs a missing package, before anything is done; arguments as for `extra`.

    >>> check_installed("torch", "lab", "a plot")

    Raises:
        ModuleNotFoundError: as `extra` does.
    """
    if find_spec(package) is None:
        raise _missing(package, name, asked)


def _missing(package: str, name: str, asked: str) -> ModuleNotFoundError:
    return ModuleNotFoundError(
        f'{asked} needs {package}, which is not installed; get the extra {name}: pip install "fastdiff-lab[{name}]"', name=package
    )
