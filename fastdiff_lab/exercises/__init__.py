"""The exercises of `notebooks/exercises`: checks, figures and the contest.

- `check(name, answer)`: try the answer on several inputs; say what was passed, found and expected
- `show(name, answer)`: draw what the answer does
- `guessing.guessed(guess, found)`: how near a guess came
- `ContestEntry`: an entry of the contest
- `contest.leaderboard(entries, seed=)`: for teachers
"""

from importlib import import_module

from ..inputs.extras import extra
from .checking import check
from .contest import ContestEntry

with extra("notebooks", "fastdiff_lab.exercises"):
    from .figures import show

__all__ = ["ContestEntry", "check", "show"]

# Take all public names now: a hidden test imports the library anew, and names first used after it would be of another import.
_package = import_module("..", __package__)
for _name in _package.__all__:
    getattr(_package, _name)
