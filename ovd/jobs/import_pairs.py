"""Write tar shards of image-text pairs from a TSV file, with a report of the pairs left out."""

from collections.abc import Sequence
from pathlib import Path

from ovd.data.pairs.tsv import read_tsv
from ovd.data.pairs.write import write_pair_shards
from ovd.data.report import DataReport


def import_pairs(
    tsv: Path, columns: Sequence[str], images: Path | None, output: Path, *, pairs_per_shard: int
) -> DataReport:
    """Write shards with their manifest, and data_report.json beside them, even if the import stops early.

    Args:
        tsv, columns, images: as for `read_tsv`.
        output: folder without shards.

    Returns:
        The report, which counts the pairs.

    Raises:
        DataError, ValueError: as raised by `read_tsv` and `write_pair_shards`.
    """
    report = DataReport()
    pairs = read_tsv(tsv, columns, images, report)
    try:
        write_pair_shards(output, pairs, pairs_per_shard=pairs_per_shard)
    finally:
        if report.num_seen():
            report.write(output / "data_report.json")
    return report
