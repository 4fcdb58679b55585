"""A collapsed feature space is spread out again, and its pairs stay together."""

import copy

import numpy as np
import open_clip
import pytest
import torch
from torch.nn import functional as F

from ovd.clip.load import Clip
from ovd.data.world.captions import caption
from ovd.data.world.scene import draw_scene
from ovd.data.world.settings import Settings
from ovd.tiny_clip.canonical import participation_ratio
from ovd.tiny_clip.pretrain import normalize
from ovd.tiny_clip.projections import pair_features, solve_projections

NUM_PAIRS = 640


@pytest.fixture(scope="module")
def pairs() -> tuple[np.ndarray, list[str]]:
    settings = Settings()
    rng = np.random.default_rng(0)
    images: list[np.ndarray] = []
    captions: list[str] = []
    while len(images) < NUM_PAIRS:
        scene = draw_scene(
            rng,
            [int(rng.integers(287))],
            size_px=112,
            object_sizes_px=[80.0],
            num_distractors=0,
            style=settings.train_style,
            centered=True,
        )
        text = caption(rng, scene.objects, settings)
        if text:
            images.append(scene.image)
            captions.append(text)
    return np.stack(images), captions


def test_features_are_those_before_the_projections(untrained_clip, pairs):
    images, captions = pairs[0][:5], pairs[1][:5]
    features = pair_features(untrained_clip, images, captions, crop=96, low_precision=False)
    model = untrained_clip.model
    with torch.no_grad():
        pixels = normalize(torch.from_numpy(images[:, 8:104, 8:104]).permute(0, 3, 1, 2), untrained_clip)
        torch.testing.assert_close(model.visual.head(features.images), model.encode_image(pixels))
        expected = model.encode_text(untrained_clip.tokenizer(captions))
        torch.testing.assert_close(features.texts @ model.text_projection, expected)


def test_solved_projections_widen_a_collapsed_space_and_keep_pairs_together(tiny_clip, pairs):
    """Respreading widens a collapsed space and keeps pairs together: images and captions are projected into six
    dimensions, and the features before the projections bring the others back."""
    collapsed = Clip(copy.deepcopy(tiny_clip.model), tiny_clip.tokenizer, tiny_clip.mean, tiny_clip.std, tiny_clip.dim)
    model = collapsed.model
    with torch.no_grad():
        model.visual.head.proj.weight[6:] = 0
        model.text_projection[:, 6:] = 0
    features = pair_features(collapsed, *pairs, crop=96, low_precision=False)

    def dimensions_and_loss() -> tuple[float, float]:
        with torch.no_grad():
            images = F.normalize(model.visual.head(features.images), dim=-1)
            texts = F.normalize(features.texts @ model.text_projection, dim=-1)
            loss = open_clip.ClipLoss()(images[:128], texts[:128], model.logit_scale.exp())
        return participation_ratio(texts), loss.item()

    dimensions_before, loss_before = dimensions_and_loss()
    solve_projections(collapsed, features, features)
    dimensions, loss = dimensions_and_loss()
    assert dimensions_before < 6
    assert dimensions > 20
    assert loss < loss_before


def test_the_committed_tiny_clip_uses_as_many_dimensions_as_its_report_says(tiny_clip):
    import json

    from ovd.clip.load import TINY_CLIP
    from ovd.data.world.glyphs import load_glyphs
    from ovd.text.encoder import encode_classes
    from ovd.text.prompts import SHORT_TEMPLATES

    report = json.loads((TINY_CLIP / "report.json").read_text())
    names = encode_classes(tiny_clip, [glyph.name for glyph in load_glyphs()], SHORT_TEMPLATES)
    assert participation_ratio(names) == pytest.approx(report["dimensions_of_the_class_names"], abs=0.2)
