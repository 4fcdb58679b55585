"""Selection of points by a sample of the names, before all names are scored; for vocabularies of tens of thousands.

A point of an object, or of something that looks like one, is near to many names, so the names that are not in the
sample hardly change which points are the best. Selected points are scored exactly; detections at the other points are
lost. The method is a choice of this toolkit; `bench/prefilter.py` measures what is kept.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from ovd.model.pair_scores import PointPredictions
from ovd.model.similarity import EPSILON, TextClassifier
from ovd.precision import fast_low_precision

NUM_SAMPLED_NAMES = 256
MIN_NAMES = 2048
"""Number of names below which a vocabulary is scored at all points, which takes no longer."""


def prefilter_points(image: PointPredictions, classifier: TextClassifier, share: float) -> Int[Tensor, " K"]:
    """Return the share of points that score best for their best name of a sample, in their order.

    The sample is every n-th text row, at least `NUM_SAMPLED_NAMES` of them.

    Args:
        classifier: classifier of at least `MIN_NAMES` names.
    """
    step = len(classifier) // NUM_SAMPLED_NAMES
    logits = classifier.scale * _best_cosines(image.embeddings, classifier, step) + classifier.bias
    log_scores = F.logsigmoid(logits) + F.logsigmoid(image.quality.float())
    return log_scores.topk(math.ceil(share * len(image)), sorted=False).indices.sort().values


def _best_cosines(embeddings: Float[Tensor, "P D"], classifier: TextClassifier, step: int) -> Float[Tensor, " P"]:
    """Compute each point's highest cosine with every `step`-th text row, in bfloat16 where that is fast."""
    dtype = torch.bfloat16 if fast_low_precision(embeddings.device) else torch.float32
    embeddings = embeddings.to(dtype)
    lengths = torch.linalg.vector_norm(embeddings, dim=1).float().clamp(min=EPSILON)
    products = embeddings @ classifier.text[::step].to(dtype).T
    if classifier.name_penalty is None:
        return products.amax(dim=1).float() / lengths
    return (products / lengths[:, None] - classifier.name_penalty[::step]).amax(dim=1)
