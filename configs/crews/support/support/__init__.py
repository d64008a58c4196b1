"""A small shop's support desk: tools over a real (SQLite) shop."""
