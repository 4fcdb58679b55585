"""The queries that a teacher gets for each pair of a shard."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

from ovd.config.labeling import LabelOptions
from ovd.data.pairs.pair import caption_fault
from ovd.fault import Fault
from ovd.selftrain.queries import QUERY_SOURCES

MAX_CAPTION_CHARACTERS = 1_000
"""Largest length of a caption; longer ones are skipped, since they are texts of pages rather than captions."""


@dataclass(frozen=True)
class PairQueries:
    """The queries of each of N pairs."""

    queries: tuple[tuple[str, ...], ...]
    """Distinct queries of each pair; empty if there is a reason."""
    reasons: tuple[Fault | None, ...]
    """Reason why a pair has no queries; None if it has some."""

    @classmethod
    def from_captions(cls, captions: Sequence[str], options: LabelOptions) -> "PairQueries":
        """Make the queries from `options.queries`: the captions, parts of them, or the same classes for all pairs."""
        if options.queries == "classes":
            return cls((options.classes,) * len(captions), (None,) * len(captions))
        queries_of = QUERY_SOURCES[options.queries].queries_of
        queries, reasons = [], []
        for caption in captions:
            fault = _fault(caption)
            asked = () if fault else tuple(dict.fromkeys(query for query in queries_of(caption) if query.strip()))
            queries.append(asked)
            reasons.append(fault or (None if asked else Fault("F30", "the caption gives no query")))
        return cls(tuple(queries), tuple(reasons))

    @cached_property
    def distinct(self) -> tuple[str, ...]:
        """Distinct queries of all pairs, in the order of their first occurrence."""
        return tuple(dict.fromkeys(chain.from_iterable(self.queries)))


def _fault(caption: str) -> Fault | None:
    fault = caption_fault(caption)
    if fault is None and len(caption) > MAX_CAPTION_CHARACTERS:
        return Fault("F30", f"the caption has {len(caption)} characters, more than {MAX_CAPTION_CHARACTERS}")
    return fault
