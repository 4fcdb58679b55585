"""Make tar shards of image-text pairs from a TSV file, and a report of those that were left out."""

from collections.abc import Sequence
from pathlib import Path

from ovd.data.pairs.tsv import read_tsv
from ovd.data.pairs.write import write_pair_shards
from ovd.data.report import DataReport


def import_pairs(
    tsv: Path, columns: Sequence[str], images: Path | None, output: Path, *, pairs_per_shard: int
) -> DataReport:
    """Write shards with their manifest, and data_report.json beside them, which an import that stops has, too.

    Args:
        tsv, columns, images: as for `read_tsv`.
        output: folder that has no shard.

    Returns:
        Counts the pairs.

    Raises:
        DataError, ValueError: as `read_tsv` and `write_pair_shards`.
    """
    report = DataReport()
    pairs = read_tsv(tsv, columns, images, report)
    try:
        write_pair_shards(output, pairs, pairs_per_shard=pairs_per_shard)
    finally:
        if report.num_seen():
            report.write(output / "data_report.json")
    return report
