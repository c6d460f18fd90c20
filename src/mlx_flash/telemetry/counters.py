"""What the streaming of experts did: asks, hits, bytes and waiting time."""

from dataclasses import dataclass, fields, replace


@dataclass
class StreamCounters:
    """Totals since the model was loaded; subtract two snapshots for an interval.

    Of the `calls` of a layer, `asks` counts the distinct (layer, expert) pairs per call, `hits`
    those that were resident, `swept` those that got no slot; `stall_s` is the time the model waited
    for bytes, `busy_s` the time in which any read was under way. Of the experts `prefetched`,
    `prefetch_hits` were asked for, `prefetch_late` of those before they had arrived; `guesses` took
    `prefetch_s`.
    The slots were `resized` so many times. `restored` counts experts of an earlier
    run that were read back before anyone asked for them; `bytes_read` includes their
    `restored_bytes`.
    """

    asks: int = 0
    hits: int = 0
    swept: int = 0
    bytes_read: int = 0
    stall_s: float = 0.0
    busy_s: float = 0.0
    prefetched: int = 0
    prefetch_hits: int = 0
    prefetch_late: int = 0
    prefetch_s: float = 0.0
    guesses: int = 0
    calls: int = 0
    resized: int = 0
    restored: int = 0
    restored_bytes: int = 0

    @property
    def hit_rate(self) -> float:
        """Hits over asks, 0..1; 1 when nothing was asked."""
        return self.hits / self.asks if self.asks else 1.0

    @property
    def prefetch_precision(self) -> float:
        """The share of prefetched experts that were asked for, 0..1; 0 when nothing was."""
        return self.prefetch_hits / self.prefetched if self.prefetched else 0.0

    def snapshot(self) -> "StreamCounters":
        """Return a copy that later events do not change."""
        return replace(self)

    def since(self, earlier: "StreamCounters") -> "StreamCounters":
        """Return what happened after `earlier` was taken."""
        return StreamCounters(
            **{f.name: getattr(self, f.name) - getattr(earlier, f.name) for f in fields(self)}
        )

    def plus(self, other: "StreamCounters") -> "StreamCounters":
        """Return both together."""
        return StreamCounters(
            **{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        )
