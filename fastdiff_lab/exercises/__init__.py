"""The exercises of `notebooks/exercises`: checks, figures and the contest.

- `check(name, answer)`: try the answer on several inputs; say what was passed, found and expected
- `show(name, answer)`: draw what the answer does
- `ContestEntry`: an entry of the contest
- `contest.leaderboard(entries, seed=)`, `classroom`: for teachers
"""

import fastdiff_lab

from ..inputs.extras import extra
from .checking import check
from .contest import ContestEntry

with extra("notebooks", "fastdiff_lab.exercises"):
    from .figures import show

__all__ = ["ContestEntry", "check", "show"]

# A hidden test imports the library anew. What the notebook uses after it must still be of one import, so all public names are taken now.
for _name in fastdiff_lab.__all__:
    getattr(fastdiff_lab, _name)
