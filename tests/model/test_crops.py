"""Crops against plain slicing and resizing."""

import sys

import pytest
import torch
from torch.nn import functional as F

from ovd.clip.load import build_on_meta
from ovd.model.crops import TINY_SIDE, crop_side, square_crops
from ovd.precision import deterministic


def make_pixels() -> torch.Tensor:
    return torch.randn(2, 3, 40, 56, generator=torch.Generator().manual_seed(0))


def test_a_square_box_at_its_own_size_is_the_slice():
    pixels = make_pixels()
    crops = square_crops(pixels, [torch.tensor([[8.0, 4.0, 24.0, 20.0]]), torch.tensor([[0.0, 0.0, 16.0, 16.0]])], 16)
    torch.testing.assert_close(crops[0], pixels[0, :, 4:20, 8:24], atol=1e-5, rtol=0)
    torch.testing.assert_close(crops[1], pixels[1, :, :16, :16], atol=1e-5, rtol=0)


def test_a_larger_box_is_averaged_not_sampled():
    pixels = make_pixels()
    (crop,) = square_crops(pixels[:1], [torch.tensor([[0.0, 0.0, 32.0, 32.0]])], 8)
    expected = F.avg_pool2d(pixels[:1, :, :32, :32], 4)[0]
    assert (crop - expected).abs().mean() < 0.25 * expected.abs().mean()  # bilinear samples of the same cells
    assert crop.std() < 0.6 * pixels.std()


def test_a_long_box_becomes_the_square_around_it_with_the_mean_color_outside():
    pixels = torch.ones(1, 3, 40, 56)
    (crop,) = square_crops(pixels, [torch.tensor([[0.0, 0.0, 40.0, 8.0]])], 40)
    assert (crop[:, :14] == 0).all()  # 16 rows above the image
    torch.testing.assert_close(crop[:, 18:], torch.ones(3, 22, 40), atol=1e-5, rtol=0)
    (wider,) = square_crops(pixels, [torch.tensor([[16.0, 8.0, 32.0, 24.0]])], 16, context=1.5)
    assert wider.shape == (3, 16, 16)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CPU has one way to cut crops")
def test_crops_are_the_same_where_a_gpu_has_to_give_the_same_bits(monkeypatch):
    # If bits must repeat, torchvision has a roi_align in Python for the sake of its gradient, which it only uses where
    # torch can compile it. Its use would be an error here.
    of_torchvision = sys.modules["torchvision.ops.roi_align"]
    monkeypatch.setattr(of_torchvision, "is_compile_supported", lambda _device: True)
    monkeypatch.setattr(of_torchvision, "_roi_align", None)
    pixels, box = torch.ones(1, 3, 40, 56), torch.tensor([[0.0, 0.0, 40.0, 8.0]])
    expected = square_crops(pixels, [box], 20)
    assert (expected == 0).any()
    with deterministic(True):
        torch.testing.assert_close(square_crops(pixels.cuda(), [box.cuda()], 20).cpu(), expected)


def test_images_without_boxes_have_no_crops():
    assert square_crops(make_pixels(), [torch.zeros(0, 4), torch.zeros(0, 4)], 16).shape == (0, 3, 16, 16)


def test_the_side_of_crops_is_the_native_one_but_for_the_tiny_clip(tiny_clip):
    assert crop_side(tiny_clip.model.visual) == TINY_SIDE
    for name, side in (("RN50", 224), ("ViT-B-16", 224), ("ViT-L-14-336", 336)):
        model, _ = build_on_meta(name)
        assert crop_side(model.visual) == side
