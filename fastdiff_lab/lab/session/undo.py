"""Undo and redo, over values that are never changed in place."""

from __future__ import annotations

from typing import Generic, TypeVar

MOST = 500
Value = TypeVar("Value")


class Undo(Generic[Value]):
    """A value, those that it had before, and those that were undone.

    >>> undo = Undo(1)
    >>> undo.change(2); undo.undo(); undo.now, undo.can_redo
    (1, True)
    """

    def __init__(self, first: Value) -> None:
        self.now = first
        self._before: list[Value] = []
        self._after: list[Value] = []
        self._gesture: int | None = None

    @property
    def can_undo(self) -> bool:
        return bool(self._before)

    @property
    def can_redo(self) -> bool:
        return bool(self._after)

    def change(self, value: Value, gesture: int | None = None) -> None:
        """Take a new value. Changes of one gesture, such as a drag, are undone together."""
        if value == self.now:
            self.now = value  # equal, perhaps of another source
            return
        if gesture is None or gesture != self._gesture:
            self._before = [*self._before[-MOST:], self.now]
        self.now, self._after, self._gesture = value, [], gesture

    def undo(self) -> None:
        """Take the value before; nothing without one."""
        if self._before:
            self._after.append(self.now)
            self.now, self._gesture = self._before.pop(), None

    def redo(self) -> None:
        """Take the value that was undone last; nothing without one."""
        if self._after:
            self._before.append(self.now)
            self.now, self._gesture = self._after.pop(), None
