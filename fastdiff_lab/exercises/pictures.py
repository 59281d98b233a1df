"""Pictures of what an answer does.

- `show(name, answer)`: draws the answer at work, beside what is expected
"""
def show(name, answer): ...
