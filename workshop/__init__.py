"""Help for the notebooks: real servers, a copy of the shop for each lesson, comparisons, counters, plans and figures.

A notebook needs one name, `open_lesson`. The technique that a lesson teaches stands in the notebook itself.
"""

from typing import Any

__all__ = ["open_lesson"]


def __getattr__(name: str) -> Any:
    # Imported when asked for: the command line stays quick without pandas and matplotlib.
    if name == "open_lesson":
        from workshop.lesson import open_lesson

        return open_lesson
    raise AttributeError(f"module 'workshop' has no attribute {name!r}")
