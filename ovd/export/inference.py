"""Inference on a data set with an exported detector, to evaluate it."""

from collections.abc import Iterator

import numpy as np
import torch

from ovd.boxes import rescale_boxes
from ovd.data.index import AnnotationIndex
from ovd.data.loading.loader import EvalLoader, LoaderOptions
from ovd.model.query_texts import QueryTexts
from ovd.onnx.session import DetectionSession
from ovd.structures import Detections


class OnnxInference:
    """Inference on data sets with an exported detector, like `BatchDetector.dataset`."""

    def __init__(self, session: DetectionSession, *, size: int | None = None):
        """
        Args:
            size: longest side in pixels that images are resized to; by default as in training.
        """
        self.session = session
        self.size = size or session.usage.size

    @property
    def threshold(self) -> float | None:
        """Score threshold for reporting boxes; None if the detector was not calibrated."""
        return self.session.usage.threshold

    def dataset(
        self, queries: QueryTexts, index: AnnotationIndex, loading: LoaderOptions
    ) -> Iterator[tuple[int, Detections]]:
        """Yield image id and detections of every image of a data set, grouped by padded shape.

        Args:
            queries: as for `BatchDetector.dataset`; only their text rows are used, since an exported detector does not
                compute CLIP's scores.

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
