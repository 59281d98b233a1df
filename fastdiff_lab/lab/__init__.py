"""The interactive lab: `session/` works without widgets, `widget/` shows it."""
