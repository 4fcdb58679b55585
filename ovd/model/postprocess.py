"""Post-processing: from predictions to detections, in pixels of the original images.

Two options make a detection depend on all queried classes together, and so does the competition between names
(pair_scores.py). Both are choices of this toolkit.

One name per place (`one_name_per_place`): each point keeps only its best class, and class-agnostic NMS precedes the
class-aware one.

Second look (`second_look`): the `candidates` best points above `score_threshold`, by their best score, go through
class-agnostic NMS at `SECOND_LOOK_NMS_IOU`; all other points are dropped. CLIP then embeds the crops of the best boxes
that are kept. At their points the cosine with a class becomes (1 - weight) * the detector's + weight * the crop's, plus
one number per point that makes the best cosine equal to the detector's best: the logit's scale and bias were learned
for the detector's cosines, and cosines of crops are higher or lower as a whole. The scores are then computed again,
with the competition. So a second look may change which class is the best at a point, but not the best probability
before the competition. A vocabulary of one class needs no second look and gets none.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchvision.ops import nms

from ovd.boxes import clip_boxes, has_area, rescale_boxes
from ovd.model.best_pairs import best_pairs, check_not_nan
from ovd.model.detection_options import DetectionOptions, SecondLookOptions
from ovd.model.pair_scores import PointPredictions, ScoreEnsemble, Scoring
from ovd.model.prefilter import prefilter_points
from ovd.model.similarity import TextClassifier, unit_embeddings
from ovd.structures import Detections, Predictions

SECOND_LOOK_NMS_IOU = 0.7
"""IoU above which a second look drops the lower-scoring of two points, whatever their classes."""

INITIAL_NMS_FACTOR = 2
"""Number of boxes that NMS processes first, as a multiple of the number to keep."""

CropEmbedder = Callable[[Sequence[Float[Tensor, "_ 4"]]], Sequence[Float[Tensor, "_ D"]]]
"""Function that computes CLIP's unit embeddings of the crops of each image's boxes, in pixels of the input image."""


@torch.no_grad()
def postprocess(
    predictions: Predictions,
    classifier: TextClassifier,
    *,
    input_sizes: Int[Tensor, "B 2"],
    original_sizes: Int[Tensor, "B 2"],
    options: DetectionOptions,
    ensemble: ScoreEnsemble | None = None,
    embed_crops: CropEmbedder | None = None,
) -> tuple[Detections, ...]:
    """Turn predictions into detections: score, select, suppress duplicates and rescale.

    The score of a point for a class is sqrt(class probability * sigmoid(quality)). Per image, boxes are clipped to the
    image and those left without area are dropped; the `candidates` best (point, class) pairs above `score_threshold` go
    through class-aware NMS, and the `max_detections` best are returned, best first. Pairs of equal score are in the
    order of point, then class. With an `ensemble` the class probability is the geometric mean of the detector's and
    CLIP's, weighted by class.

    `options` can add a competition between classes, NMS over all classes and a second look (see above), and leave out
    points that score little for a sample of the classes (prefilter.py).

    Args:
        classifier: classifier of the classes to detect, at least one; `Detections.classes` are its rows.
        input_sizes: height and width of the detector's input images before padding.
        original_sizes: height and width of the original images, which the boxes are rescaled to.
        embed_crops: embeds crops of the same images, for a second look.

    Raises:
        ValueError: the predictions or text rows contain NaN.
    """
    assert len(classifier) > 0, "postprocess needs at least one class"
    assert ensemble is None or predictions.dense is not None, "score ensembling needs the dense CLIP feature"
    scoring = Scoring(classifier, options, ensemble)
    images: Iterable[PointPredictions] = _clip_to_images(predictions, input_sizes)
    if options.prefilter is not None:
        images = [image[prefilter_points(image, classifier, options.prefilter)] for image in images]
    if options.second_look is not None and len(classifier) > 1:
        assert embed_crops is not None, "a second look needs the encoder of crops"
        images = _apply_second_look(images, scoring, embed_crops, options.second_look)
    return tuple(
        _postprocess_image(image, scoring, input_size, original_size)
        for image, input_size, original_size in zip(images, input_sizes, original_sizes, strict=True)
    )


def _clip_to_images(predictions: Predictions, input_sizes: Int[Tensor, "B 2"]) -> list[PointPredictions]:
    """Return each image's points with clipped boxes; a box without area in the image gets quality 0, so score 0."""
    if predictions.boxes.isnan().any():
        raise ValueError("the detector predicted a NaN box; its weights or its input contain NaN or infinity")
    boxes = clip_boxes(predictions.boxes.float(), input_sizes[:, None])
    quality = predictions.quality.masked_fill(~has_area(boxes), -torch.inf)
    dense = [None] * len(boxes) if predictions.dense is None else predictions.dense
    return [PointPredictions(*image) for image in zip(predictions.embeddings, boxes, quality, dense, strict=True)]


def _apply_second_look(
    images: Iterable[PointPredictions], scoring: Scoring, embed_crops: CropEmbedder, options: SecondLookOptions
) -> Iterator[PointPredictions]:
    """Yield each image's points left after class-agnostic NMS, with CLIP's embeddings of crops mixed in at the best."""
    kept, crop_rows = [], []
    for image in images:
        points, rank = _class_agnostic_nms(image, scoring).sort()  # in the order of points, which decides ties
        kept.append(image[points])
        crop_rows.append((rank < options.crops).nonzero().squeeze(1))
    crops = embed_crops([image.boxes[rows] for image, rows in zip(kept, crop_rows, strict=True)])
    for image, rows, crop_embeddings in zip(kept, crop_rows, crops, strict=True):
        mixed = unit_embeddings(image.embeddings)
        if len(rows) > 0:
            mixed[rows] = (1 - options.weight) * mixed[rows] + options.weight * crop_embeddings
        yield replace(image, mixed=mixed)


def _class_agnostic_nms(image: PointPredictions, scoring: Scoring) -> Int[Tensor, " K"]:
    """Return the points above the score threshold whose boxes class-agnostic NMS keeps, best first."""
    scores = _best_scores(image, scoring)
    order = scores.argsort(descending=True, stable=True)[: scoring.options.candidates]
    order = order[scores[order] > scoring.options.score_threshold]
    return order[nms(image.boxes[order].double(), scores[order].double(), SECOND_LOOK_NMS_IOU)]


def _best_after_nms(
    boxes: Float[Tensor, "N 4"], scores: Float[Tensor, " N"], iou: float, count: int
) -> Int[Tensor, " K"]:
    """Return the rows of the `count` best boxes that NMS keeps, best first.

    Args:
        boxes: boxes, best first. Worse boxes do not change whether a box is kept, so they are processed only if needed.
    """
    num_tried = INITIAL_NMS_FACTOR * count
    while True:
        kept = nms(boxes[:num_tried], scores[:num_tried], iou)
        if len(kept) >= count or num_tried >= len(boxes):
            return kept[:count]
        num_tried *= 2


def _best_scores(image: PointPredictions, scoring: Scoring) -> Float[Tensor, " P"]:
    """Compute each point's score for its best class."""
    points = torch.arange(len(image), device=image.boxes.device)
    chunks = points.split(scoring.chunk_size)
    return check_not_nan(torch.cat([scoring.pair_scores(image[chunk]).all_scores().amax(dim=1) for chunk in chunks]))


def _postprocess_image(
    image: PointPredictions, scoring: Scoring, input_size: Int[Tensor, "2"], original_size: Int[Tensor, "2"]
) -> Detections:
    options, pairs = scoring.options, best_pairs(image, scoring)
    boxes = image.boxes[pairs.points]
    if options.one_name_per_place is not None:
        kept = nms(boxes.double(), pairs.scores.double(), options.one_name_per_place)
        boxes, pairs = boxes[kept], pairs[kept]

    # NMS is class-aware because the boxes of each class are shifted by a different distance, as in torchvision's
    # batched_nms, but in float64: in float32 the shifts of a thousand classes would round fractions of a pixel. On a
    # CPU batched_nms loops over the classes instead, which is many times slower.
    shifts = pairs.classes * (input_size.max() + 1)
    kept = _best_after_nms(
        boxes.double() + shifts[:, None], pairs.scores.double(), options.nms_iou, options.max_detections
    )
    found = pairs[kept]
    return Detections(
        boxes=rescale_boxes(boxes[kept], input_size, original_size), scores=found.scores, classes=found.classes
    )
