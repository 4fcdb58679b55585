"""Attention in windows: the patches that see each other, and the exported graph, for grids of any size."""

import copy
from pathlib import Path

import pytest
import torch
from open_clip.model import CLIPVisionCfg, _build_vision_tower
from random_images import normal_images
from small_backbones import DIM, FAMILIES, random_visual
from small_export import unchecked
from torch import Tensor, nn

from ovd.export.tracing import write_onnx
from ovd.model.backbone import Backbone
from ovd.model.backbone_families import backbone_from_visual
from ovd.model.backbone_transformer import TransformerBackbone, join_windows, split_windows

STARTS = {
    1: (1, [0]),
    3: (3, [0]),
    4: (2, [0, 2]),
    5: (3, [0, 2]),
    6: (3, [0, 3]),
    7: (3, [0, 2, 4]),
    10: (3, [0, 2, 5, 7]),
}
"""Side and starts of the windows by the grid's side, for windows of at most three rows."""


@pytest.mark.parametrize("grid", [(4, 6), (5, 7), (1, 1), (3, 10)])
def test_windows_are_slices_of_the_grid_and_are_joined_as_they_were_split(grid):
    tokens = torch.randn(2, 1 + grid[0] * grid[1], 3)
    windows = split_windows(tokens, grid, 3, 1)
    (height, rows), (width, columns) = STARTS[grid[0]], STARTS[grid[1]]
    patches = tokens[:, 1:].unflatten(1, grid)
    expected = [
        torch.cat([image_tokens[:1], image[y : y + height, x : x + width].flatten(0, 1)])
        for image_tokens, image in zip(tokens, patches, strict=True)
        for y in rows
        for x in columns
    ]
    assert torch.equal(windows, torch.stack(expected))
    torch.testing.assert_close(join_windows(windows, grid, 3, 1), tokens)


@pytest.mark.parametrize("length", [1, 2, 5, 14, 17, 50])
@pytest.mark.parametrize("window", [1, 2, 3, 14, 60])
def test_windows_of_any_size_hold_every_patch_and_no_other(length, window):
    tokens = torch.arange(1.0, 3 * length + 2)[None, :, None]
    windows = split_windows(tokens, (length, 3), window, 1)
    assert set(windows[:, 1:].flatten().tolist()) == set(tokens[0, 1:].flatten().tolist())
    assert len(windows) == -(-length // window) * -(-3 // window)
    assert windows.shape[1] - 1 <= window**2
    assert torch.equal(join_windows(windows, (length, 3), window, 1), tokens)


def test_the_class_token_becomes_the_mean_of_its_copies():
    windows = split_windows(torch.zeros(1, 1 + 4 * 4, 1), (4, 4), 2, 1)
    windows[:, 0, 0] = torch.tensor([1.0, 2.0, 3.0, 6.0])
    assert join_windows(windows, (4, 4), 2, 1)[0, :, 0].tolist() == [3.0] + [0.0] * 16


@pytest.mark.parametrize("name", ["vit", "eva01", "eva02"])
@torch.no_grad()
def test_a_window_at_least_as_large_as_the_grid_changes_nothing(name):
    model, images = random_visual(name), normal_images(96, 128)
    plain = backbone_from_visual(copy.deepcopy(model)).dense(images)
    scale = float(plain.abs().max())
    for window in (8, 9, 64):
        windowed = backbone_from_visual(copy.deepcopy(model), window=window).dense(images)
        torch.testing.assert_close(windowed, plain, atol=1e-5 * scale, rtol=1e-4)
    smaller = backbone_from_visual(copy.deepcopy(model), window=7, global_blocks=0).dense(images)
    assert (smaller - plain).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["vit", "siglip"])
@pytest.mark.parametrize("num_global", [0, 1])
def test_a_block_that_attends_to_all_is_among_those_before_the_dense_feature(name, num_global):
    torch.manual_seed(0)
    model = _build_vision_tower(DIM, CLIPVisionCfg(**FAMILIES[name])).eval()
    backbone = backbone_from_visual(model, window=2, global_blocks=num_global)
    assert isinstance(backbone, TransformerBackbone)
    whole = []

    def run_block(block, tokens, rotary):
        whole.append(tokens.shape[1] > 4 + backbone.num_prefix)
        return type(backbone).run_block(backbone, block, tokens, rotary)

    backbone.run_block = run_block  # type: ignore[method-assign]
    with torch.no_grad():
        backbone(normal_images(96, 96))
    num_before = len(backbone._blocks) - backbone.takes_class_token
    assert sum(whole[:num_before]) == num_global
    assert whole[num_before - 1] == bool(num_global)


def test_windows_keep_what_lies_elsewhere_out():
    """Windows shut out other patches: without blocks of global attention, changing a far patch changes no feature
    outside its window."""
    torch.manual_seed(0)
    model = _build_vision_tower(DIM, CLIPVisionCfg(**FAMILIES["vit"])).eval()
    backbone = backbone_from_visual(model, window=2)
    assert isinstance(backbone, TransformerBackbone)
    backbone._blocks = backbone._blocks[:1] + backbone._blocks[-1:]
    images = normal_images(96, 96)
    changed = images.clone()
    changed[:, :, 64:, 64:] = 0
    with torch.no_grad():
        difference = (backbone.dense(images) - backbone.dense(changed)).abs().amax(dim=(0, 1))
    assert (difference > 1e-4).float().sum() == 4
    assert (difference[4:, 4:] > 1e-4).all()


class Dense(nn.Module):
    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone.dense(images)


@pytest.mark.parametrize("window", [3, 50])
def test_an_exported_graph_has_windows_for_images_of_any_size(window: int, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    backbone = backbone_from_visual(random_visual("vit"), window=window)
    axes = {0: "batch", 2: "height", 3: "width"}
    with unchecked():
        write_onnx(
            Dense(backbone).eval(), (normal_images(96, 128, batch=2),), tmp_path / "dense.onnx",
            inputs={"images": axes}, outputs={"dense": axes}, metadata={},
        )  # fmt: skip
    session = onnxruntime.InferenceSession(tmp_path / "dense.onnx")
    for height, width in ((96, 128), (160, 64), (32, 224), (80, 112)):
        images = normal_images(height, width, batch=3)
        (found,) = session.run(None, {"images": images.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), backbone.dense(images), atol=1e-4, rtol=1e-4)
