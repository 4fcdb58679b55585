"""The last step of pretraining: solve for the tiny CLIP's last layers again, so that they use more dimensions.

In real CLIP models the embeddings of LVIS's class names vary in about 85 dimensions (participation ratio); in the tiny
CLIP, after a few thousand steps, in 9. In such a small space a few hundred base classes determine the map from images
to text for all other classes, too, and keeping the alignment would be trivial.
"""

from dataclasses import dataclass

import numpy as np
import open_clip
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from ovd.clip.load import Clip
from ovd.precision import autocast
from ovd.progress import progress
from ovd.tiny_clip.canonical import canonical_projections
from ovd.tiny_clip.pretrain import normalize

RIDGE = 1e-3
SCALES = tuple(range(5, 51))
BATCH_SIZE = 128


@dataclass(frozen=True)
class Features:
    """Inputs of a CLIP model's image and text projections, for the same pairs."""

    images: Float[Tensor, "N I"]
    texts: Float[Tensor, "N T"]


@torch.no_grad()
def pair_features(
    clip: Clip, images: UInt8[np.ndarray, "N S S 3"], captions: list[str], *, crop: int, low_precision: bool
) -> Features:
    """Compute the features of the images' central crops and of their captions, in eval mode."""
    model = clip.model.eval()
    margin = (images.shape[1] - crop) // 2
    projection, model.text_projection = model.text_projection, None
    batches = range(0, len(images), BATCH_SIZE)
    image_features, text_features = [], []
    try:
        for start in progress(batches, len(batches), "features"):
            chosen = slice(start, start + BATCH_SIZE)
            crops = images[chosen, margin : margin + crop, margin : margin + crop]
            pixels = normalize(torch.from_numpy(crops).permute(0, 3, 1, 2), clip)
            with autocast(torch.device("cpu"), low_precision):
                image_features.append(model.visual.trunk(pixels).float())
            text_features.append(model.encode_text(clip.tokenizer(captions[chosen])).float())
    finally:
        model.text_projection = projection
    return Features(torch.cat(image_features), torch.cat(text_features))


@torch.no_grad()
def solve_projections(clip: Clip, features: Features, held_out: Features) -> None:
    """Replace both projections and the logit scale of a CLIP model, in place.

    Each direction in which images and captions agree is scaled by the square root of its correlation; the first one,
    which all pairs share, is set to zero. Dimensions beyond those of the features are zero, too.

    Args:
        clip: a model with a linear image projection without bias.
        features: features of the pairs that the projections are solved on.
        held_out: features of the pairs on which the scale with the lowest contrastive loss is chosen, in batches of 128
            as in training (configs/pretrain_tiny_clip.yaml).
    """
    model = clip.model
    to_image, to_text, correlations = canonical_projections(features.images, features.texts, ridge=RIDGE)
    lengths = correlations.sqrt()
    lengths[0] = 0
    empty = (0, model.text_projection.shape[1] - len(lengths))
    model.visual.head.proj.weight.copy_(F.pad(to_image * lengths, empty).T)
    model.text_projection.copy_(F.pad(to_text * lengths, empty))

    images = F.normalize(model.visual.head(held_out.images), dim=-1).split(BATCH_SIZE)
    texts = F.normalize(held_out.texts @ model.text_projection, dim=-1).split(BATCH_SIZE)
    contrastive_loss = open_clip.ClipLoss()
    losses = [
        sum(float(contrastive_loss(i, t, torch.tensor(float(scale)))) for i, t in zip(images, texts, strict=True))
        for scale in SCALES
    ]
    model.logit_scale.fill_(np.log(SCALES[int(np.argmin(losses))]))
