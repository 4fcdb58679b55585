"""Canonical correlation analysis, which solves for the last, linear layers of a CLIP model in closed form.

Contrastive training from random weights can end in a text space that uses few of its dimensions: the first directions
that separate captions grow, and the gradient of an embedding stays within the span of the embeddings that it is
compared with. The layers before the projections contain more directions. Canonical correlation analysis (Hotelling
1936) finds all directions in which images and captions agree, with the correlation of each.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def canonical_projections(
    images: Float[Tensor, "N I"], texts: Float[Tensor, "N T"], *, ridge: float
) -> tuple[Float[Tensor, "I K"], Float[Tensor, "T K"], Float[Tensor, " K"]]:
    """Compute linear maps of paired features into a common space, and the correlation of each dimension, descending.

    Features are not centered, since CLIP's projections have no bias, so the first dimension is the one that all pairs
    share, with a correlation near 1. Over the N pairs, the second moments of the projected features are the identity
    (up to the ridge), and those between images and texts are diag(correlations).

    Args:
        images, texts: features of the same N pairs; K = min(I, T).
        ridge: added to the diagonal of the second moments, as a fraction of the features' mean variance, so that
            directions that hardly vary are not amplified.

    Raises:
        ValueError: there are fewer pairs than dimensions.
    """
    if len(images) < max(images.shape[1], texts.shape[1]):
        raise ValueError(f"{len(images)} pairs are too few for {images.shape[1]} x {texts.shape[1]} correlations")
    whiten_images, whiten_texts = _whitening(images, ridge), _whitening(texts, ridge)
    between = images.double().T @ texts.double() / len(images)
    left, correlations, right = torch.linalg.svd(whiten_images @ between @ whiten_texts, full_matrices=False)
    return (whiten_images @ left).float(), (whiten_texts @ right.T).float(), correlations.float()


def _whitening(features: Float[Tensor, "N F"], ridge: float) -> Float[Tensor, "F F"]:
    """Compute the symmetric inverse square root of the features' second moments, with the ridge added."""
    features = features.double()
    moments = features.T @ features / len(features)
    spread = (features - features.mean(dim=0)).square().mean()
    values, vectors = torch.linalg.eigh(moments + ridge * spread * torch.eye(len(moments), dtype=torch.float64))
    return vectors * values.rsqrt() @ vectors.T


def participation_ratio(rows: Float[Tensor, "N D"]) -> float:
    """Compute the effective number of dimensions of rows.

    It is (sum of variances)^2 / sum of squared variances, along the principal axes. For 287 class names of LVIS it is
    85 in CLIP ViT-B/32, which has 512 dimensions.
    """
    variances = torch.linalg.svdvals((rows - rows.mean(dim=0)).double()).square()
    return (variances.sum().square() / variances.square().sum()).item()
