"""A plant's maintenance office: tools over a real (SQLite) plant."""
