"""Removal of classes that only group others: Roboflow's COCO files have the project's name as the parent of all."""

from dataclasses import replace

import numpy as np

from ovd.data.formats.table import AnnotationTable
from ovd.data.report import DataReport


def without_parents(table: AnnotationTable, report: DataReport) -> AnnotationTable:
    """Return the table without classes that are the supercategory of others and have no object.

    In training, such a name would be a negative everywhere: "vehicles" on every car.

    Args:
        report: counts the removed classes (F2).
    """
    counts = np.bincount(table.class_of_object, minlength=len(table.categories)).tolist()
    kept = [row for row, category in enumerate(table.categories) if counts[row] or not category.is_parent]
    if len(kept) == len(table.categories):
        return table
    for row in sorted(set(range(len(table.categories))) - set(kept)):
        category = table.categories[row]
        where = f"{table.path}: category {category.id}, {category.name!r}"
        report.count_repaired("F2", f"{where}, is left out: it is the parent of other categories and has no box")
    new_row = np.full(len(table.categories), -1, np.int64)
    new_row[kept] = np.arange(len(kept))
    return replace(
        table,
        categories=tuple(table.categories[row] for row in kept),
        class_of_object=new_row[table.class_of_object],
    )
