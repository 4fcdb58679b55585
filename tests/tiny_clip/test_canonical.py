"""Canonical projections: they match the textbook's eigenvalues, whiten, and stay finite without variance."""

import numpy as np
import pytest
import torch

from ovd.tiny_clip.canonical import canonical_projections, participation_ratio


def paired_features(num_pairs: int = 4000) -> tuple[torch.Tensor, torch.Tensor]:
    """Make two views of three shared sources of falling strength, with noise of their own and unequal scales."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    shared = normal(num_pairs, 3) * torch.tensor([2.0, 1.0, 0.5])
    images = torch.cat([shared + normal(num_pairs, 3), normal(num_pairs, 4)], dim=1) @ normal(7, 7)
    texts = torch.cat([shared + normal(num_pairs, 3), normal(num_pairs, 2)], dim=1) @ normal(5, 5)
    return images, texts


def test_correlations_are_the_roots_of_the_textbook_eigenvalues():
    """The squared correlations are the eigenvalues of Sxx^-1 Sxy Syy^-1 Syx (Hotelling)."""
    images, texts = paired_features()
    _, _, correlations = canonical_projections(images, texts, ridge=0.0)
    x, y = images.double().numpy(), texts.double().numpy()
    product = np.linalg.solve(x.T @ x, x.T @ y) @ np.linalg.solve(y.T @ y, y.T @ x)
    expected = np.sqrt(np.sort(np.linalg.eigvals(product).real)[::-1][:5])
    np.testing.assert_allclose(correlations.numpy(), expected, atol=1e-5)
    # The true values are variance / (variance + 1) for each source, and zero otherwise.
    np.testing.assert_allclose(correlations.numpy(), [0.8, 0.5, 0.2, 0, 0], atol=0.05)


def test_projected_features_are_white_and_agree_dimension_by_dimension():
    images, texts = paired_features()
    to_image, to_text, correlations = canonical_projections(images, texts, ridge=0.0)
    i, t = images @ to_image, texts @ to_text
    for moments, expected in ((i.T @ i, torch.eye(5)), (t.T @ t, torch.eye(5)), (i.T @ t, correlations.diag())):
        torch.testing.assert_close(moments / len(i), expected, atol=1e-4, rtol=0)


def test_ridge_keeps_directions_without_variance_finite():
    images, texts = paired_features()
    images[:, 6] = images[:, 5]  # rank 6 of 7
    to_image, _, correlations = canonical_projections(images, texts, ridge=1e-3)
    assert to_image.isfinite().all()
    assert to_image.abs().max() < 100
    assert correlations.max() < 1


def test_too_few_pairs_are_refused():
    with pytest.raises(ValueError, match="6 pairs are too few for 7 x 5"):
        canonical_projections(torch.randn(6, 7), torch.randn(6, 5), ridge=0.1)


@pytest.mark.parametrize(
    ("scales", "expected"), [([1.0] * 6, 6.0), ([1.0, 0, 0, 0, 0, 0], 1.0), ([1, 1, 0, 0, 0, 0], 2)]
)
def test_participation_ratio_counts_equal_directions(scales, expected):
    """The participation ratio counts equal directions, here of the vertices of a cross-polytope that is stretched and
    moved away from the origin."""
    rows = torch.cat([torch.eye(6), -torch.eye(6)]) * torch.tensor(scales) + 3.0
    assert participation_ratio(rows) == pytest.approx(expected, abs=1e-4)
