"""Region distillation: class embeddings are pulled towards the original CLIP's embeddings of crops of predicted boxes.

The idea, CLIP's embedding of a crop as the target of a dense embedding, is CLIPSelf's (arXiv:2310.01403), which applies
it to the backbone's dense feature. Its use for a detector's class embeddings at its own predicted boxes, and the
selection of boxes and points, are choices of this toolkit. The loss needs no labels.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torchvision.ops import box_iou, nms

from ovd.boxes import clip_boxes
from ovd.model.crop_encoder import CropEncoder
from ovd.model.region_options import RegionOptions
from ovd.model.similarity import TextClassifier, best_scores, unit_embeddings
from ovd.structures import Points, Predictions

MIN_BOX_SIDE_PX = 8.0
"""Length that a box's shorter side must exceed: CLIP could not name the content of a smaller crop."""
NMS_IOU = 0.5
"""IoU above which the lower-scoring of two boxes is dropped, whatever their classes."""
AGREEMENT_IOU = 0.7
"""IoU above which a point's predicted box agrees with a kept box."""


@dataclass(frozen=True)
class Regions:
    """The K kept boxes of a batch's images, and the N points whose predicted boxes agree with them."""

    boxes: tuple[Float[Tensor, "_ 4"], ...]
    """Kept boxes of each image, clipped to it, best first."""
    point_rows: Int[Tensor, " N"]
    """Each point's row among the B * P points of all images."""
    box_rows: Int[Tensor, " N"]
    """Row of the point's box among the K boxes."""


@torch.no_grad()
def select_regions(
    predictions: Predictions,
    classifier: TextClassifier,
    *,
    points: Points,
    sizes: Int[Tensor, "B 2"],
    options: RegionOptions,
) -> Regions:
    """Select in each image the best predicted boxes, and the points whose predicted boxes agree with them.

    A box is clipped to its image; it is a candidate if its shorter side is longer than `MIN_BOX_SIDE_PX` and if
    it scores more than `min_score`. The score is the geometric mean of the highest class probability and the quality.
    The `boxes` best candidates that survive class-agnostic NMS are kept. The points of a kept box are the `points` best
    candidates whose IoU with it is above `AGREEMENT_IOU`. They usually include the box's own point: others come before
    it only if they score more and NMS dropped them for a third box.

    Args:
        classifier: classifier of the texts scored in the step; without texts, nothing is selected.
        points: points of the predictions; those in an image's padding are left out.
        sizes: height and width of each image before padding.
    """
    boxes, pairs, num_boxes = [], [], 0
    for image, padding in enumerate(points.in_padding(sizes)):
        kept, point, box = _select_in_image(predictions, image, padding, sizes[image], classifier, options)
        boxes.append(kept)
        pairs.append(torch.stack([image * len(points.centers) + point, num_boxes + box]))
        num_boxes += len(kept)
    return Regions(tuple(boxes), *torch.cat(pairs, dim=1))


def _select_in_image(
    predictions: Predictions,
    image: int,
    padding: Bool[Tensor, " P"],
    size: Int[Tensor, "2"],
    classifier: TextClassifier,
    options: RegionOptions,
) -> tuple[Float[Tensor, "K 4"], Int[Tensor, " N"], Int[Tensor, " N"]]:
    """Return an image's kept boxes, the points, and the row of each point's box."""
    boxes = clip_boxes(predictions.boxes[image].float(), size)
    is_large = (boxes[:, 2:] - boxes[:, :2]).amin(dim=1) > MIN_BOX_SIDE_PX
    (point,) = (is_large & ~padding).nonzero(as_tuple=True)
    scores = best_scores(predictions.embeddings[image, point], predictions.quality[image, point], classifier)
    scores, order = scores.sort(descending=True, stable=True)
    point = point[order][scores > options.min_score]
    boxes, scores = boxes[point], scores[scores > options.min_score]
    kept = nms(boxes, scores, NMS_IOU)[: options.boxes]
    agrees = box_iou(boxes[kept], boxes) > AGREEMENT_IOU
    agrees &= agrees.cumsum(dim=1) <= options.points  # the best ones, since points are sorted by score
    box, column = agrees.nonzero(as_tuple=True)
    return boxes[kept], point[column], box


def region_loss(
    embeddings: Float[Tensor, "B P D"],
    regions: Regions,
    images: UInt8[Tensor, "B 3 H W"],
    sizes: Int[Tensor, "B 2"],
    teacher: CropEncoder,
) -> Float[Tensor, ""]:
    """Compute the sum over the regions' points of 1 - cosine between class embedding and CLIP's embedding of the crop.

    Without any point it is 0, with a gradient of zeros.

    Args:
        embeddings: class embeddings of any length.
        images: RGB images, 0..255.
        sizes: height and width of each image before padding.
        teacher: encoder that computes CLIP's embeddings of the crops.
    """
    # The gradient of index_select adds the rows in order, so it has the same bits every time.
    chosen = unit_embeddings(embeddings.flatten(0, 1).index_select(0, regions.point_rows))
    if len(regions.point_rows) == 0:
        return chosen.sum()
    wanted = torch.cat(teacher(images, sizes, regions.boxes))[regions.box_rows]
    return (1 - (chosen * wanted).sum(dim=1)).sum()
