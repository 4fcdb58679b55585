"""CLIP's embeddings of crops against open_clip's own encoder."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from random_images import coarse_noise
from torch.nn import functional as F

from ovd.model.backbone_families import backbone_from_visual
from ovd.model.crop_encoder import CropEncoder, View
from ovd.model.crops import square_crops
from ovd.model.normalization import Normalization
from ovd.precision import Compute

SIZES = [(60, 90), (80, 50)]


def padded_pair(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Make a batch of a wide and a tall image with bright padding, which would show in a crop."""
    images = torch.full((2, 3, 96, 96), 255, dtype=torch.uint8)
    for row, (height, width) in enumerate(SIZES):
        images[row, :, :height, :width] = torch.from_numpy(coarse_noise(seed + row, height, width)).permute(2, 0, 1)
    return images, torch.tensor(SIZES)


def make_encoder(clip, *views: tuple[int, float], low_precision: bool = False, device: str = "cpu") -> CropEncoder:
    backbone = backbone_from_visual(copy.deepcopy(clip.model.visual))
    normalization = Normalization(clip.mean, clip.std)
    return CropEncoder(
        backbone,
        normalization,
        views=[View(*view) for view in views],
        compute=Compute(torch.device(device), low_precision),
    )


def encode(clip, pixels: torch.Tensor) -> torch.Tensor:
    """Encode a crop with open_clip's own method; negative pixel values mark places outside the image."""
    mean, std = torch.tensor(clip.mean).view(3, 1, 1), torch.tensor(clip.std).view(3, 1, 1)
    normalized = torch.where(pixels < 0, torch.zeros(()), (pixels / 255 - mean) / std)
    with torch.no_grad():
        return F.normalize(clip.model.encode_image(normalized[None]), dim=1)[0]


def test_embeddings_are_those_of_clip_for_the_slices(tiny_clip, monkeypatch):
    monkeypatch.setattr("ovd.model.crop_encoder.MAX_CROPS_PER_BATCH", 2)
    images, sizes = padded_pair()
    boxes = [
        torch.tensor([[8.0, 4.0, 40.0, 36.0], [58.0, 20.0, 90.0, 52.0]]),
        torch.tensor([[2.0, 45.0, 34.0, 77.0]]),
    ]
    found = make_encoder(tiny_clip, (32, 1.0))(images, sizes, boxes)
    assert [len(of_image) for of_image in found] == [2, 1]
    for row, of_image in enumerate(boxes):
        for box, embedding in zip(of_image.int().tolist(), found[row], strict=True):
            expected = encode(tiny_clip, images[row, :, box[1] : box[3], box[0] : box[2]].float())
            torch.testing.assert_close(embedding, expected, atol=1e-4, rtol=0)
    distinct = torch.cat(found)
    assert (distinct @ distinct.T - torch.eye(3)).max() < 0.99


def test_of_several_views_the_mean_counts(tiny_clip):
    images, sizes = padded_pair()
    boxes = [torch.tensor([[8.0, 4.0, 40.0, 30.0]]), torch.zeros(0, 4)]
    views = [(64, 1.0), (64, 1.3), (48, 1.15)]
    (joined, nothing) = make_encoder(tiny_clip, *views)(images, sizes, boxes)
    each = torch.cat([make_encoder(tiny_clip, view)(images, sizes, boxes)[0] for view in views])
    torch.testing.assert_close(joined, F.normalize(each.mean(dim=0, keepdim=True), dim=1), atol=1e-5, rtol=0)
    assert (each @ each.T).min() < 0.99
    assert nothing.shape == (0, 256)


def test_outside_the_image_is_mean_color_in_the_padding_too(tiny_clip):
    images, sizes = padded_pair()
    box = torch.tensor([[10.0, 28.0, 26.0, 60.0]])  # 16 x 32 at the bottom of the wide image; 64 px with context 2
    (found, nothing) = make_encoder(tiny_clip, (64, 2.0))(images, sizes, [box, torch.zeros(0, 4)])
    canvas = torch.full((3, 64, 64), -1.0)  # x from -14 to 50, y from 12 to 76
    inside = images[0, :, 12:60, :50].float()
    canvas[:, :49, 13:] = F.pad(inside[None], (1, 0, 0, 1), mode="replicate")  # roi_align repeats the last pixel once
    torch.testing.assert_close(found[0], encode(tiny_clip, canvas), atol=1e-4, rtol=0)
    assert nothing.shape == (0, 256)


def test_an_image_in_a_padded_batch_is_seen_as_alone(tiny_clip):
    images, sizes = padded_pair()
    boxes = [torch.tensor([[30.0, 20.0, 90.0, 60.0]]), torch.tensor([[0.0, 40.0, 50.0, 80.0], [5.0, 5.0, 9.0, 70.0]])]
    encoder = make_encoder(tiny_clip, (64, 1.15), (32, 1.0))
    together = encoder(images, sizes, boxes)
    for row, (height, width) in enumerate(SIZES):
        (alone,) = encoder(images[row : row + 1, :, :height, :width], sizes[row : row + 1], boxes[row : row + 1])
        torch.testing.assert_close(alone, together[row], atol=1e-5, rtol=0)


def test_nothing_to_look_at(tiny_clip):
    images, sizes = padded_pair()
    assert [len(part) for part in make_encoder(tiny_clip, (64, 1.0))(images, sizes, [torch.zeros(0, 4)] * 2)] == [0, 0]


def test_low_precision_is_near_the_exact_one(tiny_clip):
    images, sizes = padded_pair()
    boxes = [torch.tensor([[16.0, 20.0, 48.0, 52.0]]), torch.tensor([[8.0, 8.0, 40.0, 40.0]])]
    exact, rounded = (
        torch.cat(make_encoder(tiny_clip, (32, 1.0), low_precision=low)(images, sizes, boxes)) for low in (False, True)
    )
    assert rounded.dtype == torch.float32
    assert F.cosine_similarity(exact, rounded).min() > 0.999


def test_crops_are_made_and_encoded_in_parts_of_bounded_size(tiny_clip, monkeypatch):
    images, sizes = padded_pair()
    boxes = [torch.rand(7, 2) * 30, torch.zeros(0, 2), torch.rand(4, 2) * 30]
    boxes = [torch.cat([corner, corner + 20], dim=1) for corner in boxes]
    images, sizes = images[[0, 1, 1]], sizes[[0, 1, 1]]
    encoder = make_encoder(tiny_clip, (32, 1.2), (64, 1.0))
    expected = encoder(images, sizes, boxes)
    monkeypatch.setattr("ovd.model.crop_encoder.MAX_PIXELS_PER_BATCH", 3 * 32**2)
    shapes, whole = [], encoder.backbone.encode

    def encode_seen(crops: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(crops.shape))
        return whole(crops)

    monkeypatch.setattr(encoder.backbone, "encode", encode_seen)
    found = encoder(images, sizes, boxes)
    assert shapes == [(count, 3, 32, 32) for count in (3, 3, 3, 2)] + [(1, 3, 64, 64)] * 11
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_crops_of_images_of_several_sizes_are_those_cut_out_image_by_image(tiny_clip, monkeypatch):
    """Crops from images of several sizes equal those cut image by image, in the images' order and to the bit."""
    pair, pair_sizes = padded_pair()
    other, _ = padded_pair(seed=5)
    images, sizes = torch.cat([pair, other]), pair_sizes.repeat(2, 1)
    boxes = [
        torch.tensor([[8.0, 4.0, 40.5, 36.0], [58.0, 20.0, 90.0, 59.0]]),
        torch.tensor([[2.0, 45.0, 34.0, 77.0]]),
        torch.zeros(0, 4),
        torch.tensor([[1.0, 1.5, 20.0, 30.0]]),
    ]
    encoder = make_encoder(tiny_clip, (32, 1.2))
    expected = torch.cat(
        [
            square_crops(encoder.normalization(image[None, :, :height, :width]), [own], 32, context=1.2)
            for image, (height, width), own in zip(images, sizes.tolist(), boxes, strict=True)
        ]
    )
    seen = []
    whole = encoder.backbone.encode

    def encode_seen(crops: torch.Tensor) -> torch.Tensor:
        seen.append(crops)
        return whole(crops)

    monkeypatch.setattr(encoder.backbone, "encode", encode_seen)
    found = encoder(images, sizes, boxes)
    assert torch.equal(torch.cat(seen), expected)
    assert [len(of_image) for of_image in found] == [2, 1, 0, 1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_encoders_gpu_is_the_current_one_while_it_runs(tiny_clip, monkeypatch):
    """The GPU of an encoder is the current one while it runs, where Triton launches its kernels."""
    selected, seen = [], []
    select = torch.cuda.device

    @contextmanager
    def recorded(device: torch.device) -> Iterator[None]:
        selected.append(device)
        with select(device):
            yield
        selected.pop()

    monkeypatch.setattr(torch.cuda, "device", recorded)
    encoder = make_encoder(tiny_clip, (32, 1.0), device="cuda:0")
    convolution = next(module for module in encoder.backbone.modules() if isinstance(module, torch.nn.Conv2d))
    convolution.register_forward_pre_hook(lambda *_: seen.append(list(selected)))
    images, sizes = padded_pair()
    encoder(images.to("cuda:0"), sizes.to("cuda:0"), [torch.tensor([[8.0, 4.0, 40.0, 36.0]]).to("cuda:0")] * 2)
    assert seen == [[torch.device("cuda:0")]]
    assert not selected
