"""Other accelerations, by their authors' own packages."""
