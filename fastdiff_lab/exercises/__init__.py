"""The exercises of `notebooks/exercises`: checked, drawn, and the contest.

- `check(name, answer)`: is the answer right on several inputs? If not: what was passed, found and expected
- `show(name, answer)`: a picture of what the answer does
- `ContestEntry`: what is handed in for the contest
- `contest.leaderboard(entries, seed=)`, `classroom`: for teachers
"""

from ..inputs.extras import extra
from .checking import check
from .contest import ContestEntry

with extra("notebooks", "fastdiff_lab.exercises"):
    from .figures import show

__all__ = ["ContestEntry", "check", "show"]
