"""Pairs of an image and a class, each encoded as one number."""

from collections.abc import Iterable

import numpy as np

from ovd.data.truth import Truth
from ovd.shapes import Int64


class ImageClassPairs:
    """Pairs of a truth's images and classes. A pair's number is image row x number of classes + class row.

    Args:
        truth: its images and categories, which ascend by id, define the rows.
    """

    def __init__(self, truth: Truth) -> None:
        self.num_images, self.num_classes = len(truth.images), len(truth.categories)
        self._truth = truth

    def numbers(
        self, image_ids: Int64[np.ndarray, " R"], category_ids: Int64[np.ndarray, " R"]
    ) -> Int64[np.ndarray, " R"]:
        """Return the number of each pair; all ids must be in the truth."""
        return self._truth.image_rows(image_ids) * self.num_classes + self._truth.category_rows(category_ids)

    def image_rows(self, numbers: Int64[np.ndarray, " R"]) -> Int64[np.ndarray, " R"]:
        """Return the row of each pair's image."""
        return numbers // self.num_classes

    def class_rows(self, numbers: Int64[np.ndarray, " R"]) -> Int64[np.ndarray, " R"]:
        """Return the row of each pair's class."""
        return numbers % self.num_classes

    def known(self) -> Int64[np.ndarray, " P"]:
        """Return the pairs whose class a federated truth knows to be in the image or not; sorted, without repeats."""
        true = self.numbers(self._truth.image_ids, self._truth.category_ids)
        return np.union1d(true, self._listed((image.id, image.negative_category_ids) for image in self._truth.images))

    def incomplete(self) -> Int64[np.ndarray, " P"]:
        """Return the pairs in which objects may lack a box according to a federated truth; sorted, without repeats."""
        return self._listed((image.id, image.not_exhaustive_category_ids) for image in self._truth.images)

    def _listed(self, categories_of_images: Iterable[tuple[int, tuple[int, ...]]]) -> Int64[np.ndarray, " P"]:
        """Return the numbers of listed pairs, without categories that a list contains but the file does not."""
        pairs = [(image, category) for image, categories in categories_of_images for category in categories]
        rows = np.array(pairs, np.int64).reshape(-1, 2)
        rows = rows[np.isin(rows[:, 1], self._truth.ids_of_categories)]
        return np.unique(self.numbers(rows[:, 0], rows[:, 1]))
