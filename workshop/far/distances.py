"""The gain of a technique against the network distance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from workshop.far.proxy import checked_round_trip
from workshop.measure.result import Comparison
from workshop.table import Shown, Table, seconds, significant

if TYPE_CHECKING:
    from matplotlib.figure import Figure

from workshop.far.servers import FarServers, Servers, pinging, round_trip

PINGS_S = 0.3  # what finding the round trip at one distance may take


@dataclass(frozen=True)
class Distances(Shown):
    """One comparison at several network distances, the nearest first.

    `added_ms`: the round-trip times that were asked for; `round_trips_s`: those measured with the servers' own pings,
    the nearest network's own included; `comparisons`: one for each.
    """

    name: str
    nearest: str
    added_ms: list[float] = field(default_factory=list)
    round_trips_s: list[float] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)

    @property
    def points(self) -> list[tuple[float, float, float, float]]:
        """(round trip in ms as measured, gain, low, high) for each distance, as `figures.distance` takes them."""
        return [
            (1e3 * trip, c.ratio, *c.interval) for trip, c in zip(self.round_trips_s, self.comparisons, strict=True)
        ]

    def table(self) -> Table:
        """What is displayed: times are medians per unit of each comparison."""
        bounded = any(c.lower_bound_s is not None for c in self.comparisons)
        headings = ["network", "round trip", "before", "after", *(["lower bound"] * bounded), "gain (interval)"]
        rows = []
        for added, trip, c in zip(self.added_ms, self.round_trips_s, self.comparisons, strict=True):
            times = [
                seconds(c.before_s),
                seconds(c.after_s),
                *([seconds(c.lower_bound_s)] if c.lower_bound_s is not None else []),
            ]
            low, high = map(significant, c.interval)
            mark = "~ " if c.verdict == "~" else ""
            where = f"+{added:g} ms" if added else self.nearest
            rows.append([where, seconds(trip), *times, f"{mark}{significant(c.ratio)}x ({low} to {high})"])
        return Table(headings, rows)

    def __repr__(self) -> str:
        return f"{self.name}\n{self.table()!r}"

    def plot(self, title: str | None = None) -> Figure:
        """Draw the gain against the round trip; `title` says the finding."""
        from workshop import figures  # matplotlib is slow to import

        return figures.distance(self.points, title, nearest=None if self.added_ms[0] else self.nearest)


def compare_at_distances(
    near: Servers,
    arms: Callable[[FarServers], Sequence[Callable]],
    measure_one: Callable[..., Comparison],
    *,
    name: str,
    round_trips_ms: Sequence[float],
    near_round_trip_s: float,
    nearest: str = "loopback",
    **options: Any,
) -> Distances:
    """Measure what `arms` returns at each distance; `Lesson.compare_at_distances` says the rest.

    `measure_one(before, after, lower_bound, added_ms=, round_trip_s=, **options)` measures at one distance.
    """
    trips = sorted({checked_round_trip(trip) for trip in round_trips_ms})
    if not trips:
        raise ValueError("round_trips_ms needs at least one round trip in milliseconds, found none.")
    found = Distances(name, nearest)
    for added in trips:
        with FarServers(near, added) as far:
            work = arms(far)
            if not isinstance(work, Sequence) or not 2 <= len(work) <= 3 or not all(map(callable, work)):
                raise ValueError(
                    f"arms must return (before, after) or (before, after, lower_bound), functions, found {work!r}."
                )
            if found.comparisons and len(work) != len(found.comparisons[0].arms):
                raise ValueError(
                    f"arms must return as many functions at each distance, found {len(work)} at {added:g} ms "
                    f"after {len(found.comparisons[0].arms)}."
                )
            trip = near_round_trip_s
            if added:
                if not far.servers:
                    raise ValueError(
                        "arms must connect by the URLs of its argument (.postgres, .dsn, .redis_url, .mongo_url), "
                        "but it used none of them: with the lesson's own URLs no distance is added."
                    )
                with pinging(far, far.servers[0]) as ping:
                    trip = round_trip(ping, budget_s=PINGS_S)
            lower_bound = work[2] if len(work) == 3 else None
            result = measure_one(work[0], work[1], lower_bound, added_ms=added, round_trip_s=trip, **options)
            found.added_ms.append(added)
            found.round_trips_s.append(trip)
            found.comparisons.append(result)
            del work, lower_bound
    return found
