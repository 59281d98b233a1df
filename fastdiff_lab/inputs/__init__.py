"""What comes from outside: values made plain, and small files."""
