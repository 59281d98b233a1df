"""What makes the exercises and examinations of their masters; of the repository, not installed."""
