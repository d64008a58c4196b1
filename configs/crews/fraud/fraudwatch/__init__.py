"""A card issuer's fraud desk: tools over a real (SQLite) bank."""
