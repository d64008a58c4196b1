"""Python's garbage collector, set for a process that folds records all day.

Records, entries and states are tuples and trees that reference counting frees; the collector finds nothing in
them and takes an eighth of a turn's CPU to look, at its default of a look every 700 objects.
"""

from __future__ import annotations

import gc

YOUNG_OBJECTS = 10_000


def calm() -> None:
    """Look for garbage less often, unless somebody has set the collector already. Idempotent."""
    if gc.get_threshold()[0] == 700:  # Python's default
        gc.freeze()  # what is loaded by now stays
        gc.set_threshold(YOUNG_OBJECTS, 20, 20)
