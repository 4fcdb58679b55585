"""The guarantee of the method: a fresh gated detector has CLIP's own embedding at every point.

The reference is computed from open_clip's own modules: a hook in front of the pooling replaces the last map by one of
its locations, so that CLIP's own code pools and projects it. Resampling is written out in numpy.
"""

import math

import numpy as np
import open_clip
import pytest
import torch
from small_alignment import small_align_config, write_images
from small_detector import build_detector
from torch.nn import functional as F

from ovd.clip.load import Clip, load_clip
from ovd.jobs.align_backbone import align_backbone
from ovd.model.backbone_convolution import TimmConvolutionBackbone
from ovd.model.backbone_families import backbone_from_visual
from ovd.model.detector import Detector

IMAGE_SIZES = [(96, 128), (64, 64), (160, 96)]


def build(clip: Clip, *, gated: bool) -> Detector:
    return build_detector(clip, *(("pyramid", "head") if gated else ()))


@torch.no_grad()
def dense_reference(clip: Clip, images: torch.Tensor) -> np.ndarray:
    """Compute B x D x h x w features: `encode_image` with the last map replaced by each of its locations in turn."""
    visual = clip.model.visual
    seen: list[torch.Tensor] = []
    features = visual.trunk.forward_features

    def keep(x):
        seen.append(features(x))
        return seen[-1]

    visual.trunk.forward_features = keep
    try:
        clip.model.encode_image(images)
        (last,) = seen
        batch, _, height, width = last.shape
        locations = []
        for y in range(height):
            for x in range(width):
                visual.trunk.forward_features = lambda _, y=y, x=x: last[:, :, y : y + 1, x : x + 1]
                locations.append(clip.model.encode_image(images))
    finally:
        del visual.trunk.forward_features
    return torch.stack(locations, -1).reshape(batch, -1, height, width).numpy()


def resample_reference(dense: np.ndarray, dense_stride: int, stride: int, height: int, width: int) -> np.ndarray:
    """Resample a dense feature, bilinearly at the cells' centers (edges repeated) or as the mean over the cells
    covered, then scale it to unit length."""
    out = np.zeros((*dense.shape[:2], height, width))
    ratio = stride / dense_stride
    for y in range(height):
        for x in range(width):
            if ratio >= 1:
                r = int(ratio)
                out[:, :, y, x] = dense[:, :, y * r : (y + 1) * r, x * r : (x + 1) * r].mean((2, 3))
                continue
            weights = []
            for position, size in ((y, dense.shape[2]), (x, dense.shape[3])):
                center = max((position + 0.5) * ratio - 0.5, 0.0)
                low = min(math.floor(center), size - 1)
                weights.append(((low, 1 - (center - low)), (min(low + 1, size - 1), center - low)))
            for row, row_weight in weights[0]:
                for column, column_weight in weights[1]:
                    out[:, :, y, x] += row_weight * column_weight * dense[:, :, row, column]
    return out / np.linalg.norm(out, axis=1, keepdims=True)


def embeddings_reference(detector: Detector, clip: Clip, images: torch.Tensor) -> np.ndarray:
    """Compute B x P x D embeddings of all levels."""
    mean, std = (255 * torch.tensor(values).view(3, 1, 1) for values in (clip.mean, clip.std))
    dense = dense_reference(clip, (images.float() - mean) / std)
    levels = []
    for stride in detector.strides:
        height, width = (math.ceil(side / stride) for side in images.shape[-2:])
        level = resample_reference(dense, detector.backbone.strides[-1], stride, height, width)
        levels.append(level.reshape(*level.shape[:2], -1).transpose(0, 2, 1))
    return np.concatenate(levels, axis=1)


def largest_difference(clip: Clip, *, gated: bool, training: bool, size: tuple[int, int]) -> float:
    detector = build(clip, gated=gated).train(training)
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        embeddings = detector(images).embeddings.numpy()
    return float(np.abs(embeddings - embeddings_reference(detector, clip, images)).max())


@pytest.mark.parametrize("size", IMAGE_SIZES)
@pytest.mark.parametrize("training", [True, False])
def test_fresh_gated_detector_is_dense_clip_at_every_location_of_every_level(untrained_clip, training, size):
    assert largest_difference(untrained_clip, gated=True, training=training, size=size) < 1e-5


def test_the_form_without_shortcuts_is_not(untrained_clip):
    assert largest_difference(untrained_clip, gated=False, training=True, size=(96, 128)) > 0.05


def test_with_the_committed_weights(tiny_clip):
    assert largest_difference(tiny_clip, gated=True, training=True, size=(192, 192)) < 1e-5
    assert largest_difference(tiny_clip, gated=False, training=True, size=(192, 192)) > 0.05


def test_with_an_aligned_backbone(tmp_path):
    """The guarantee holds for a folder written by tools/align_backbone.py, which is a CLIP model like any other."""
    align_backbone(small_align_config(tmp_path / "run", write_images(tmp_path / "images", 4)), command="")
    aligned = load_clip(str(tmp_path / "run"))
    assert largest_difference(aligned, gated=True, training=True, size=(96, 160)) < 1e-5
    assert largest_difference(aligned, gated=False, training=True, size=(96, 160)) > 0.05


@pytest.mark.parametrize("gated", [True, False])
def test_argmax_class_inside_true_boxes_is_that_of_dense_clip(tiny_clip, gated):
    """On scenes of the world, the best class at each P3 point inside a true box is dense CLIP's if and only if there
    are shortcuts."""
    from ovd.data.world.build import detection_scene
    from ovd.data.world.glyphs import load_glyphs
    from ovd.data.world.settings import Settings
    from ovd.text.encoder import encode_classes

    settings = Settings()
    scene, _ = detection_scene(0, (3, 70, 120, 200), "val", settings.train_style, settings)
    images = torch.from_numpy(scene.image).permute(2, 0, 1)[None]
    text = encode_classes(tiny_clip, [glyph.name for glyph in load_glyphs()], ("{}",))
    detector = build(tiny_clip, gated=gated).train()
    reference = torch.from_numpy(embeddings_reference(detector, tiny_clip, images)).float()
    with torch.no_grad():
        embeddings = F.normalize(detector(images).embeddings, dim=-1)
    points = detector.points(images)
    boxes = torch.tensor([item.box for item in scene.objects])
    x, y = points.centers[:, None].unbind(-1)
    inside = ((x > boxes[:, 0]) & (x < boxes[:, 2]) & (y > boxes[:, 1]) & (y < boxes[:, 3])).any(1)
    inside &= points.strides == 8
    assert inside.sum() > 20
    same = ((embeddings @ text.T).argmax(-1) == (reference @ text.T).argmax(-1))[0, inside]
    assert bool(same.all()) == gated


def test_mean_of_the_dense_feature_is_the_pooled_embedding(untrained_clip):
    """The mean of the dense feature is exactly the pooled embedding for average pooling without a later norm, as in the
    tiny backbone."""
    images = torch.randn(2, 3, 96, 160)
    with torch.no_grad():
        dense = backbone_from_visual(untrained_clip.model.visual).dense(images)
        pooled = untrained_clip.model.encode_image(images)
    torch.testing.assert_close(dense.mean((2, 3)), pooled, atol=1e-5, rtol=1e-4)


def test_spatially_constant_last_map_gives_the_pooled_embedding_everywhere(untrained_clip):
    backbone = TimmConvolutionBackbone(untrained_clip.model.visual)
    last = torch.randn(2, 256, 1, 1).relu()
    with torch.no_grad():
        dense = backbone.project_locations(last.expand(2, 256, 3, 5))
        pooled = backbone.projection(backbone.trunk.forward_head(last))
    torch.testing.assert_close(dense, pooled[:, :, None, None].expand_as(dense))


@pytest.fixture(scope="module")
def convnext() -> Clip:
    torch.manual_seed(0)
    return load_clip("convnext_base", "random")


def test_convnext_base_is_aligned_and_trains(convnext):
    """ConvNeXt-B with random weights (nothing is downloaded) is aligned, and runs forward and backward at 256 px
    through the same code."""
    assert isinstance(convnext.model.visual, open_clip.timm_model.TimmModel)
    detector = build(convnext, gated=True).train()
    assert detector.strides == [8, 16, 32, 64, 128]
    images = torch.randint(0, 256, (1, 3, 256, 256), dtype=torch.uint8)
    predictions = detector(images)
    difference = predictions.embeddings.detach().numpy() - embeddings_reference(detector, convnext, images)
    assert np.abs(difference).max() < 1e-5
    (predictions.embeddings[..., 0].sum() + predictions.boxes.mean() + predictions.quality.sum()).backward()
    gradients = [p.grad for p in detector.backbone.parameters() if p.grad is not None]
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
