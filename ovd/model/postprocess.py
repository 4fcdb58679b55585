"""Post-processing: from predictions to detections, in pixels of the original images.

Three options make a detection depend on all classes that are searched for together. All are choices of this toolkit.

Competition (`competition`): a point's score for a class is multiplied by softmax(competition * cosine) **
competition_power, over all classes of the vocabulary. So a score may not be compared with one from another vocabulary.
The only class of a vocabulary keeps its scores. The correction of the bias towards trained names is then in the softmax
alone.

One name per place (`one_name_per_place`): each point stands for its best class alone, and NMS over all classes comes
before the class-aware one.

Second look (`second_look`): the `candidates` best points above `score_threshold` are reduced by NMS over all classes at
`PLACE_IOU`, by each point's best score; the others are dropped. CLIP looks at the crops of the best boxes that are
kept. At their points the cosine with a class becomes (1 - weight) * the detector's + weight * the crop's, plus one
number a point that makes the best cosine the detector's best: the logit's scale and bias were learned for the
detector's cosines, and cosines of crops are higher or lower as a whole. The scores are then computed anew, with the
competition. So it may change which class is the best of a point, but not that class's probability before the
competition. A vocabulary of one class needs no second look and gets none.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchvision.ops import nms

from ovd.boxes import clip_boxes, rescale_boxes
from ovd.model.compiled import compiled
from ovd.model.detection_options import DetectionOptions
from ovd.model.similarity import TextClassifier, points_at_a_time, unit_embeddings
from ovd.structures import Detections, Predictions

PLACE_IOU = 0.7
"""IoU above which the weaker of two points' boxes gets no second look, whatever their classes."""


@dataclass(frozen=True)
class ScoreEnsemble:
    """Combination of the detector's scores with CLIP's, for predictions that include the dense CLIP feature."""

    weights: Float[Tensor, " C"]
    """CLIP's weight in each class's probability, 0 to 1."""
    clip_scale: float
    """CLIP's factor from cosine to logit; its probability is the softmax over the vocabulary's classes."""


@dataclass(frozen=True)
class _ImagePredictions:
    """The predictions at P points of one image."""

    embeddings: Float[Tensor, "P D"]
    boxes: Float[Tensor, "P 4"]
    quality: Float[Tensor, " P"]
    clip: Float[Tensor, "P D"] | None
    mixed: Float[Tensor, "P D"] | None = None
    """After a second look, the vectors whose products with text rows are the mixed cosines."""

    def __getitem__(self, points: Int[Tensor, " p"]) -> "_ImagePredictions":
        clip = None if self.clip is None else self.clip[points]
        mixed = None if self.mixed is None else self.mixed[points]
        return _ImagePredictions(self.embeddings[points], self.boxes[points], self.quality[points], clip, mixed)


Scores = Callable[[_ImagePredictions], Float[Tensor, "P C"]]
Look = Callable[[Sequence[Float[Tensor, "_ 4"]]], Sequence[Float[Tensor, "_ D"]]]
"""CLIP's unit embeddings of the crops of each image's boxes, which are in pixels of the input image."""


@torch.no_grad()
def postprocess(
    predictions: Predictions,
    classifier: TextClassifier,
    *,
    input_sizes: Int[Tensor, "B 2"],
    original_sizes: Int[Tensor, "B 2"],
    options: DetectionOptions,
    ensemble: ScoreEnsemble | None = None,
    look: Look | None = None,
    use_compiled: bool = False,
) -> tuple[Detections, ...]:
    """Score, select, suppress duplicates and rescale.

    The score of a point for a class is sqrt(class probability * sigmoid(quality)). Per image, boxes are clipped to the
    image and those left without area are dropped; the `candidates` best (point, class) pairs above `score_threshold` go
    through class-aware NMS, and the `max_detections` best are returned, best first. Pairs of equal score are in the
    order of point, then class. With an `ensemble` the class probability is the geometric mean of the detector's and
    CLIP's, weighted by class.

    `options` can add a competition between classes, NMS over all classes and a second look (see above).

    Args:
        classifier: of the vocabulary to detect, at least one class; `Detections.classes` are its rows.
        input_sizes: height and width of the detector's input images before padding.
        original_sizes: height and width of the original images, which the boxes are rescaled to.
        look: encodes crops of the same images, for a second look.
        use_compiled: whether torch.compile fuses the computation of each pair; equal except for rounding.

    Raises:
        ValueError: the predictions or text rows contain NaN.
    """
    assert len(classifier) > 0, "postprocess needs at least one class"
    assert ensemble is None or predictions.clip is not None, "score ensembling needs the dense CLIP feature"
    scores_of = _scores_of(classifier, options, ensemble, use_compiled)
    at_a_time = points_at_a_time(len(classifier), predictions.boxes.device)
    images = _visible(predictions, input_sizes)
    if options.second_look is not None and len(classifier) > 1:
        assert look is not None, "a second look needs the encoder of crops"
        images = _look_again(images, scores_of, look, options, at_a_time)
    return tuple(
        _postprocess_image(image, scores_of, input_size, original_size, options, at_a_time)
        for image, input_size, original_size in zip(images, input_sizes, original_sizes, strict=True)
    )


def score_points(
    predictions: Predictions, classifier: TextClassifier, options: DetectionOptions
) -> Float[Tensor, "B P C"]:
    """The scores of all points for all classes, all at once, as `postprocess` computes them without a second look."""
    points = _ImagePredictions(
        predictions.embeddings.flatten(0, 1), predictions.boxes.flatten(0, 1), predictions.quality.flatten(), clip=None
    )
    scores = _scores_of(classifier, options, None, False)(points)
    return scores.unflatten(0, predictions.quality.shape)


def _scores_of(
    classifier: TextClassifier, options: DetectionOptions, ensemble: ScoreEnsemble | None, use_compiled: bool
) -> Scores:
    """The function that computes the scores of points for all classes."""
    join = compiled(_join_scores) if use_compiled else _join_scores
    compete = compiled(_compete) if use_compiled else _compete

    def scores_of(some: _ImagePredictions) -> Float[Tensor, "P C"]:
        cosines = classifier.cosines(some.embeddings)
        if some.mixed is not None:
            mixed = some.mixed @ classifier.text.T
            if classifier.lowered is not None:
                mixed = mixed - classifier.lowered
            cosines = mixed + (cosines.amax(dim=1) - mixed.amax(dim=1))[:, None]
        absolute = cosines
        if options.competition > 0 and classifier.lowered is not None:
            # A bias towards names is one in the choice between them: where they compete, it is corrected there alone.
            absolute = cosines + classifier.lowered
        probability = sigmoid(classifier.scale * absolute + classifier.bias)
        if ensemble is not None:
            assert some.clip is not None
            named = (ensemble.clip_scale * some.clip @ classifier.text.T).softmax(dim=1)
            weights = ensemble.weights.to(named.device)
            probability = probability ** (1 - weights) * named**weights
        scores = join(probability, some.quality)
        if options.competition > 0:
            scores = compete(scores, cosines, options.competition, options.competition_power)
        return scores

    return scores_of


def _join_scores(probability: Float[Tensor, "P C"], quality: Float[Tensor, " P"]) -> Float[Tensor, "P C"]:
    return torch.sqrt(probability * sigmoid(quality[:, None].float()))


def sigmoid(logits: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
    """Probabilities, the small ones as exact as the large ones in a traced graph, too.

    onnxruntime's own operation is exact to 1e-7, which changes the order of points that score little.
    """
    return 1 / (1 + (-logits).exp()) if torch.jit.is_tracing() else logits.sigmoid()


def _compete(
    scores: Float[Tensor, "P C"], cosines: Float[Tensor, "P C"], competition: float, power: float
) -> Float[Tensor, "P C"]:
    # The power of the softmax in the log domain, where a small probability does not become 0 before its root is taken.
    return scores * (power * (competition * cosines).log_softmax(dim=1)).exp()


def _visible(predictions: Predictions, input_sizes: Int[Tensor, "B 2"]) -> Iterator[_ImagePredictions]:
    """The points of each image whose boxes have an area in it, the boxes clipped."""
    clips = [None] * len(input_sizes) if predictions.clip is None else predictions.clip
    per_image = zip(predictions.embeddings, predictions.boxes, predictions.quality, clips, strict=True)
    for image, input_size in zip(per_image, input_sizes, strict=True):
        predicted = _ImagePredictions(*image)
        if predicted.boxes.isnan().any():
            raise ValueError("the detector predicted a NaN box: its weights or its input are broken")
        clipped = replace(predicted, boxes=clip_boxes(predicted.boxes.float(), input_size))
        yield clipped[_has_area(clipped.boxes).nonzero().squeeze(1)]


def _look_again(
    images: Iterator[_ImagePredictions],
    scores_of: Scores,
    look: Look,
    options: DetectionOptions,
    at_a_time: int,
) -> Iterator[_ImagePredictions]:
    """The points that are left after NMS over all classes, with what CLIP sees at the best of them."""
    assert options.second_look is not None
    places, looked_at = [], []
    for image in images:
        points, rank = _places(image, scores_of, options, at_a_time).sort()  # in the order that ties are in
        places.append(image[points])
        looked_at.append((rank < options.second_look.crops).nonzero().squeeze(1))
    crops = look([image.boxes[rows] for image, rows in zip(places, looked_at, strict=True)])
    weight = options.second_look.weight
    for image, rows, of_crops in zip(places, looked_at, crops, strict=True):
        mixed = unit_embeddings(image.embeddings)
        if len(rows) > 0:
            mixed[rows] = (1 - weight) * mixed[rows] + weight * of_crops
        yield replace(image, mixed=mixed)


def _places(
    image: _ImagePredictions, scores_of: Scores, options: DetectionOptions, at_a_time: int
) -> Int[Tensor, " K"]:
    """The points above the score threshold whose box no better one covers, best first."""
    scores = _best_scores(image, scores_of, at_a_time)
    order = scores.argsort(descending=True, stable=True)[: options.candidates]
    order = order[scores[order] > options.score_threshold]
    return order[nms(image.boxes[order].double(), scores[order].double(), PLACE_IOU)]


def _best_scores(image: _ImagePredictions, scores_of: Scores, at_a_time: int) -> Float[Tensor, " P"]:
    """Each point's score for its best class."""
    points = torch.arange(len(image.embeddings), device=image.embeddings.device)
    return _whole(torch.cat([scores_of(image[chunk]).amax(dim=1) for chunk in points.split(at_a_time)]))


def _whole(best_scores: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
    """The same scores, none of which is NaN; the highest of several is if any of them is."""
    if best_scores.isnan().any():
        raise ValueError("a score is NaN: the detector's weights, its input or the text rows are broken")
    return best_scores


def _postprocess_image(
    image: _ImagePredictions,
    scores_of: Scores,
    input_size: Int[Tensor, "2"],
    original_size: Int[Tensor, "2"],
    options: DetectionOptions,
    at_a_time: int,
) -> Detections:
    point, classes, scores = _best_pairs(image, scores_of, options, at_a_time)
    boxes = image.boxes[point]
    if options.one_name_per_place is not None:
        kept = nms(boxes.double(), scores.double(), options.one_name_per_place)
        boxes, classes, scores = boxes[kept], classes[kept], scores[kept]

    # NMS is class-aware because the boxes of each class are shifted by a distance of its own, as in torchvision's
    # batched_nms, but in float64: in float32 the shifts of a thousand classes would round fractions of a pixel. On a
    # CPU batched_nms loops over the classes instead, which is many times slower.
    shifts = classes * (input_size.max() + 1)
    kept = nms(boxes.double() + shifts[:, None], scores.double(), options.nms_iou)[: options.max_detections]
    return Detections(
        boxes=rescale_boxes(boxes[kept], input_size, original_size), scores=scores[kept], classes=classes[kept]
    )


def _best_pairs(
    image: _ImagePredictions, scores_of: Scores, options: DetectionOptions, at_a_time: int
) -> tuple[Int[Tensor, " K"], Int[Tensor, " K"], Float[Tensor, " K"]]:
    """Point, class and score of an image's best (point, class) pairs, best first."""
    # The best pairs are at the `candidates` points with the highest best score: their best pairs alone score no less
    # than any pair of the other points. Ties are ordered as in one sort of all pairs, since both sorts are stable.
    candidates = options.candidates
    pairs = []
    for chunk, scores in _scores_of_best_points(image, scores_of, candidates, at_a_time):
        wanted = scores > options.score_threshold
        if options.one_name_per_place is not None:  # a point's other classes have its box, and a lower score
            wanted &= torch.arange(scores.shape[1], device=scores.device) == scores.argmax(dim=1, keepdim=True)
        elif scores.numel() > candidates:  # only pairs that can be among the best are sorted
            wanted &= scores >= scores.flatten().topk(candidates, sorted=False).values.amin()
        rows, classes = wanted.nonzero().unbind(dim=1)
        pairs.append((chunk[rows], classes, scores[rows, classes]))
    point, classes, scores = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    scores, order = scores.sort(descending=True, stable=True)
    order = order[:candidates]
    return point[order], classes[order], scores[:candidates]


def _scores_of_best_points(
    image: _ImagePredictions, scores_of: Scores, candidates: int, at_a_time: int
) -> Iterator[tuple[Int[Tensor, " p"], Float[Tensor, "p C"]]]:
    """The `candidates` points of the highest best score, in their order, and their scores, chunk by chunk."""
    if len(image.embeddings) <= at_a_time:  # all scores fit into memory, and are computed once
        scores = scores_of(image)
        chosen = _best_points(_whole(scores.amax(dim=1)), candidates)
        yield chosen, scores if len(scores) <= candidates else scores[chosen]
        return
    if len(image.embeddings) > candidates:
        chosen = _best_points(_best_scores(image, scores_of, at_a_time), candidates)
    else:
        chosen = torch.arange(len(image.embeddings), device=image.embeddings.device)
    for chunk in chosen.split(at_a_time):
        scores = scores_of(image[chunk])
        _whole(scores.amax(dim=1))
        yield chunk, scores


def _best_points(best_scores: Float[Tensor, " P"], candidates: int) -> Int[Tensor, " p"]:
    return best_scores.argsort(descending=True, stable=True)[:candidates].sort().values


def _has_area(boxes: Float[Tensor, "P 4"]) -> Bool[Tensor, " P"]:
    return (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
