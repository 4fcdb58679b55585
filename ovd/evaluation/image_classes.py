"""Pairs of an image and a class, each by one number."""

from collections.abc import Iterable

import numpy as np

from ovd.data.truth import Truth
from ovd.shapes import Int64


class ImageClassPairs:
    """The pairs of a truth's images and classes. A number is row of the image x number of classes + row of the class.

    Args:
        truth: its images and categories, which ascend by id, are the rows.
    """

    def __init__(self, truth: Truth) -> None:
        self.num_images, self.num_classes = len(truth.images), len(truth.categories)
        self._truth = truth

    def numbers(
        self, image_ids: Int64[np.ndarray, " R"], category_ids: Int64[np.ndarray, " R"]
    ) -> Int64[np.ndarray, " R"]:
        """The number of each pair; all ids are the truth's."""
        return self._truth.image_rows(image_ids) * self.num_classes + self._truth.category_rows(category_ids)

    def image_rows(self, numbers: Int64[np.ndarray, " R"]) -> Int64[np.ndarray, " R"]:
        """The row of each pair's image."""
        return numbers // self.num_classes

    def class_rows(self, numbers: Int64[np.ndarray, " R"]) -> Int64[np.ndarray, " R"]:
        """The row of each pair's class."""
        return numbers % self.num_classes

    def known(self) -> Int64[np.ndarray, " P"]:
        """The pairs of which a federated truth says whether the class is in the image, ascending, each once."""
        true = self.numbers(self._truth.image_ids, self._truth.category_ids)
        return np.union1d(true, self._listed((image.id, image.negative_category_ids) for image in self._truth.images))

    def incomplete(self) -> Int64[np.ndarray, " P"]:
        """The pairs of which a federated truth says that objects may have no box, ascending, each once."""
        return self._listed((image.id, image.not_exhaustive_category_ids) for image in self._truth.images)

    def _listed(self, categories_of_images: Iterable[tuple[int, tuple[int, ...]]]) -> Int64[np.ndarray, " P"]:
        """Numbers of listed image ids and category ids. A list may name categories that the file does not have."""
        pairs = [(image, category) for image, categories in categories_of_images for category in categories]
        rows = np.array(pairs, np.int64).reshape(-1, 2)
        rows = rows[np.isin(rows[:, 1], self._truth.ids_of_categories)]
        return np.unique(self.numbers(rows[:, 0], rows[:, 1]))
