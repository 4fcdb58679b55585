"""Random split of a data set's images into two parts that share its classes as far as possible."""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np


def draw_parts(classes: Sequence[set[int]], num_first: int, seed: int) -> tuple[list[int], list[int]]:
    """Draw two parts at random, and return the ascending positions of the images in each of them.

    The same seed gives the same parts. After the draw, rare classes first, an image of each class that one part lacks
    is exchanged for an image of that part, if both parts keep other images of all classes of the exchanged images.

    Args:
        classes: ids of the classes in each image.
        num_first: number of images in the first part.
    """
    order = np.random.default_rng(seed).permutation(len(classes)).tolist()
    num_images = Counter(class_id for of_image in classes for class_id in of_image)
    shared_classes = [{class_id for class_id in of_image if num_images[class_id] > 1} for of_image in classes]
    draw = _Draw(order, num_first, shared_classes)
    for class_id, count in sorted(num_images.items(), key=lambda item: (item[1], item[0])):
        if count > 1:
            draw.share(class_id)
    first, second = ([row for row in range(len(classes)) if draw.part_of[row] == part] for part in (0, 1))
    return first, second


class _Draw:
    """Images in two parts, and the number of images per class in each part."""

    def __init__(self, order: Sequence[int], num_first: int, classes: Sequence[set[int]]):
        """
        Args:
            order: positions of all images; the first `num_first` are in the first part.
            classes: ids of the classes in each image, without classes that no other image has.
        """
        self.part_of = dict.fromkeys(order[:num_first], 0) | dict.fromkeys(order[num_first:], 1)
        self._order = order
        self._classes = classes
        self._counts = (Counter[int](), Counter[int]())
        for row in order:
            self._counts[self.part_of[row]].update(classes[row])

    def share(self, class_id: int) -> None:
        """Exchange two images if one part lacks the class and neither part loses a class by the exchange."""
        for part, counts in enumerate(self._counts):
            if counts[class_id]:
                continue
            for row in self._free_images(1 - part, {class_id}):
                self._move(row)
                other = next(self._free_images(part, set()), None)
                self._move(row if other is None else other)
                if other is not None:
                    break

    def _free_images(self, part: int, asked: set[int]) -> Iterator[int]:
        """Yield the images of a part that have all `asked` classes and are not its only image of any class."""
        counts = self._counts[part]
        for row in self._order:
            classes = self._classes[row]
            if self.part_of[row] == part and asked <= classes and all(counts[each] > 1 for each in classes):
                yield row

    def _move(self, row: int) -> None:
        """Move an image to the other part."""
        part = self.part_of[row]
        self._counts[part].subtract(self._classes[row])
        self._counts[1 - part].update(self._classes[row])
        self.part_of[row] = 1 - part
