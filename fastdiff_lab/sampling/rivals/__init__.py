"""Other accelerations, by their authors' packages."""
