"""An exported detector in the place of a detector's own inference, to evaluate it on a data set."""

from collections.abc import Iterator

import numpy as np
import torch

from ovd.boxes import rescale_boxes
from ovd.data.index import AnnotationIndex
from ovd.data.loading.loader import EvalLoader, Loading
from ovd.model.query_texts import QueryTexts
from ovd.onnx.session import DetectionSession
from ovd.structures import Detections


class OnnxInference:
    """Detects in data sets as a `BatchDetector` does."""

    def __init__(self, session: DetectionSession, *, size: int | None = None):
        """
        Args:
            size: longest side in pixels that images are resized to; by default as in training.
        """
        self.session = session
        self.size = size or session.usage.size

    @property
    def threshold(self) -> float | None:
        """The score above which boxes are best reported; None if it is not known."""
        return self.session.usage.threshold

    def dataset(
        self, queries: QueryTexts, index: AnnotationIndex, loading: Loading
    ) -> Iterator[tuple[int, Detections]]:
        """Yield image id and detections of every image of a data set, those of one padded shape together.

        Args:
            queries: as for `BatchDetector.dataset`; only their text rows are used, since an exported detector has no
                scores of CLIP's.

        Raises:
            DataError: an image is missing or cannot be read.
        """
        loader = EvalLoader(index, loading, size=self.size, size_divisor=self.session.usage.size_divisor)
        for batch, original_sizes in loader:
            images = np.ascontiguousarray(batch.images.permute(0, 2, 3, 1).numpy())
            found = self.session(images, batch.sizes.numpy(), queries.text.numpy())
            rows = zip(batch.image_ids, found, batch.sizes, original_sizes, strict=True)
            for image_id, item, size, original in rows:
                boxes = rescale_boxes(torch.from_numpy(item.boxes), size, original)
                yield image_id, Detections(boxes, torch.from_numpy(item.scores), torch.from_numpy(item.classes))
