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
from ovd.model.best_pairs import Pairs, best_pairs, check_not_nan
from ovd.model.detection_options import DetectionOptions, SecondLookOptions
from ovd.model.pair_scores import PointPredictions, ScoreEnsemble, Scoring
from ovd.model.prefilter import MIN_NAMES, prefilter_points
from ovd.model.similarity import TextClassifier, unit_embeddings
from ovd.model.suppression import best_after_nms
from ovd.structures import Detections, Predictions

SECOND_LOOK_NMS_IOU = 0.7
"""IoU above which a second look drops the lower-scoring of two points, whatever their classes."""

CropEmbedder = Callable[[Sequence[Float[Tensor, "_ 4"]]], Sequence[Float[Tensor, "_ D"]]]
"""Function that computes CLIP's unit embeddings of the crops of each image's boxes, in pixels of the input image."""


@torch.no_grad()
def postprocess(
    predictions: Predictions,
    classifiers: Sequence[TextClassifier],
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
    through class-aware NMS, and the `max_detections` best are returned on the CPU, best first. Pairs of equal score are
    in the order of point, then class. With an `ensemble` the class probability is the geometric mean of the detector's
    and CLIP's, weighted by class.

    `options` can add a competition between classes, NMS over all classes and a second look (see above), and leave out
    points that score little for a sample of the classes (prefilter.py).

    Args:
        classifiers: classifier of the classes to detect, at least one, in all images; or a classifier for each image,
            with the same scale and bias, without an ensemble, a prefilter and a second look. `Detections.classes` are
            its rows.
        input_sizes: height and width of the detector's input images before padding.
        original_sizes: height and width of the original images, which the boxes are rescaled to.
        embed_crops: embeds crops of the same images, for a second look.

    Raises:
        ValueError: the predictions or text rows contain NaN.
    """
    assert all(len(classifier) > 0 for classifier in classifiers), "postprocess needs at least one class"
    assert ensemble is None or predictions.dense is not None, "score ensembling needs the dense CLIP feature"
    scoring = Scoring(classifiers, options, ensemble)
    images: Iterable[PointPredictions] = _clip_to_images(predictions, input_sizes)
    if options.prefilter is not None and len(classifiers[0]) >= MIN_NAMES:
        (classifier,) = classifiers
        images = [image[prefilter_points(image, classifier, options.prefilter)] for image in images]
    if options.second_look is not None and len(classifiers[0]) > 1:
        assert embed_crops is not None, "a second look needs the encoder of crops"
        images = _apply_second_look(images, scoring, embed_crops, options.second_look)
    images = list(images)
    at_once = _images_at_once(images, scoring)
    found: list[Detections] = []
    for first in range(0, len(images), at_once):
        part = slice(first, first + at_once)
        found += _postprocess_images(images[part], scoring, input_sizes[part], original_sizes[part])
    return tuple(found)


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


def _best_scores(image: PointPredictions, scoring: Scoring) -> Float[Tensor, " P"]:
    """Compute each point's score for its best class."""
    points = torch.arange(len(image), device=image.boxes.device)
    chunks = points.split(scoring.chunk_size)
    return check_not_nan(torch.cat([scoring.pair_scores(image[chunk]).all_scores().amax(dim=1) for chunk in chunks]))


def _images_at_once(images: Sequence[PointPredictions], scoring: Scoring) -> int:
    """Return the number of images to process together: one, or on a GPU as many as a chunk of points holds.

    A GPU waits between the small operations on one image. Images with classifiers of their own are all processed
    together.
    """
    if len(scoring.classifiers) > 1:
        return len(images)
    numbers = {len(image) for image in images}
    if scoring.classifiers[0].text.device.type == "cpu" or len(numbers) != 1:
        return 1
    return max(1, scoring.chunk_size // max(1, *numbers))


def _postprocess_images(
    images: Sequence[PointPredictions],
    scoring: Scoring,
    input_sizes: Int[Tensor, "B 2"],
    original_sizes: Int[Tensor, "B 2"],
) -> list[Detections]:
    """Select, suppress and rescale the boxes of some images with the same number of points."""
    options, points = scoring.options, PointPredictions.join(images)
    of_images = best_pairs(points, scoring, len(images))
    if options.one_name_per_place is not None:
        of_images = [_one_name_per_place(points, pairs, options.one_name_per_place) for pairs in of_images]
    numbers, pairs = [len(pairs) for pairs in of_images], Pairs.join(of_images)

    # NMS is class-aware because the boxes of each class are shifted by a different distance, as in torchvision's
    # batched_nms, but in float64: in float32 the shifts of a thousand classes would round fractions of a pixel. On a
    # CPU batched_nms loops over the classes instead, which is many times slower.
    shifts = pairs.classes * (input_sizes.amax() + 1)
    shifted = points.boxes[pairs.points].double() + shifts[:, None]
    kept = best_after_nms(
        shifted.split(numbers),
        pairs.scores.double().split(numbers),
        options.nms_iou,
        options.max_detections,
        together=len(images) > 1 and shifted.device.type != "cpu",
    )
    found = Pairs.join([pairs[rows] for pairs, rows in zip(of_images, kept, strict=True)])

    image = found.points // max(1, len(images[0]))
    boxes = rescale_boxes(points.boxes[found.points], input_sizes[image], original_sizes[image])
    parts = (values.cpu().split([len(rows) for rows in kept]) for values in (boxes, found.scores, found.classes))
    return [Detections(*of_image) for of_image in zip(*parts, strict=True)]


def _one_name_per_place(points: PointPredictions, pairs: Pairs, iou: float) -> Pairs:
    """Return the pairs of an image that class-agnostic NMS keeps."""
    return pairs[nms(points.boxes[pairs.points].double(), pairs.scores.double(), iou)]
