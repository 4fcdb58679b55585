"""Distillation to the starting detector: no loss at the start, and then a pull back to it."""

import math
from dataclasses import replace

import pytest
import torch
from small_run import small_config
from torchvision.ops import generalized_box_iou_loss

from ovd.config_files import ConfigError
from ovd.jobs.train import train_from_config
from ovd.model.assign import assign_atss, assign_fcos
from ovd.model.fcos_head import make_points
from ovd.model.start_distillation import SURE_QUALITY, start_distillation_losses, unannotated_points
from ovd.structures import Assignment, Predictions, Targets

NAMES = ("keep_class", "keep_quality", "keep_box")


def predictions(seed: int, num_points: int = 6) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    corners = 20 * torch.rand(2, num_points, 2, generator=generator)
    boxes = torch.cat([corners, corners + 5 + 10 * torch.rand(2, num_points, 2, generator=generator)], dim=2)
    return Predictions(
        torch.randn(2, num_points, 4, generator=generator), boxes, torch.randn(2, num_points, generator=generator)
    )


def test_an_unchanged_detector_has_no_loss_and_no_gradient() -> None:
    start = predictions(0)
    now = Predictions(*(getattr(start, name).clone().requires_grad_() for name in ("embeddings", "boxes", "quality")))
    losses = start_distillation_losses(now, start, torch.ones(2, 6, dtype=torch.bool))
    assert tuple(losses) == NAMES
    for loss in losses.values():
        assert loss.item() == pytest.approx(0, abs=1e-6)
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert now.embeddings.grad is not None
    assert now.quality.grad is not None
    assert now.embeddings.grad.abs().max() < 1e-6
    assert now.quality.grad.abs().max() < 1e-6


def test_losses_are_means_over_the_free_points_computed_one_by_one() -> None:
    now, start = predictions(1), predictions(2)
    free = torch.rand(2, 6, generator=torch.Generator().manual_seed(3)) < 0.6
    found = start_distillation_losses(now, start, free)
    distances, divergences, boxes, weights = [], [], [], []
    for image, point in free.nonzero().tolist():
        one, other = now.embeddings[image, point], start.embeddings[image, point]
        distances.append(1 - float(one @ other / one.norm() / other.norm()))
        p, q = (item.quality[image, point].sigmoid().item() for item in (start, now))
        divergences.append(p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))
        if p > SURE_QUALITY:
            (a0, b0, a1, b1), (c0, d0, c1, d1) = (item.boxes[image, point].tolist() for item in (now, start))
            inside = max(0, min(a1, c1) - max(a0, c0)) * max(0, min(b1, d1) - max(b0, d0))
            union = (a1 - a0) * (b1 - b0) + (c1 - c0) * (d1 - d0) - inside
            hull = (max(a1, c1) - min(a0, c0)) * (max(b1, d1) - min(b0, d0))
            boxes.append(p * (1 - inside / union + (hull - union) / hull))
            weights.append(p)
    assert len(weights) not in (0, len(distances))
    assert found["keep_class"].item() == pytest.approx(sum(distances) / len(distances), abs=1e-5)
    assert found["keep_quality"].item() == pytest.approx(sum(divergences) / len(divergences), abs=1e-5)
    assert found["keep_box"].item() == pytest.approx(sum(boxes) / sum(weights), abs=1e-5)


def test_without_free_points_the_losses_are_zero_with_a_gradient() -> None:
    now = predictions(1)
    now = replace(now, embeddings=now.embeddings.requires_grad_())
    losses = start_distillation_losses(now, predictions(2), torch.zeros(2, 6, dtype=torch.bool))
    assert [loss.item() for loss in losses.values()] == [0, 0, 0]
    losses["keep_class"].backward()


def test_one_box_that_is_half_sure_counts_half() -> None:
    now, start = predictions(1), replace(predictions(2), quality=torch.zeros(2, 6))
    free = torch.zeros(2, 6, dtype=torch.bool)
    free[1, 4] = True
    expected = 0.5 * generalized_box_iou_loss(now.boxes[1, 4], start.boxes[1, 4])
    assert start_distillation_losses(now, start, free)["keep_box"].item() == pytest.approx(expected.item(), abs=1e-5)


def test_two_parts_divided_by_their_joint_points_are_one_batch(monkeypatch) -> None:
    now, start = predictions(1), predictions(2)
    free = torch.rand(2, 6, generator=torch.Generator().manual_seed(3)) < 0.6
    whole = start_distillation_losses(now, start, free)
    sure = free & (start.quality.sigmoid() > SURE_QUALITY)
    joint = torch.stack([free.sum().float(), start.quality.sigmoid()[sure].sum()])
    monkeypatch.setattr("ovd.model.start_distillation.sum_over_ranks", lambda _: joint)
    parts = [
        start_distillation_losses(now.of_images(only), start.of_images(only), free[only])
        for only in (slice(0, 1), slice(1, 2))
    ]
    for name in NAMES:
        assert (parts[0][name] + parts[1][name]).item() == pytest.approx(whole[name].item(), abs=1e-6)


def test_matched_ignored_and_unmatched_center_points_are_not_free() -> None:
    no = torch.zeros(1, 4, dtype=torch.bool)
    ignored, unmatched_center = no.clone(), no.clone()
    ignored[0, 1], unmatched_center[0, 2] = True, True
    assignment = Assignment(torch.tensor([[0, -1, -1, -1]]), ignored, unmatched_center)
    assert unannotated_points(assignment).tolist() == [[False, False, False, True]]


@pytest.mark.parametrize("assign", [assign_fcos, assign_atss])
def test_padding_is_not_free(assign) -> None:
    points = make_points((32, 64), [8, 16], torch.device("cpu"))
    sizes = torch.tensor([[32, 40]])
    free = unannotated_points(assign(points, (Targets.empty(),), sizes=sizes))
    assert torch.equal(free, ~points.in_padding(sizes))
    assert not free.all()


def test_a_run_with_it_stays_nearer_to_its_start_and_repeats_to_the_bit(miniature_world, plain_run, tmp_path) -> None:

    def weights(folder) -> dict[str, torch.Tensor]:
        from ovd.build.trained import load_detector

        return dict(load_detector(folder).detector.state_dict())

    def tuned(name: str, **train) -> dict[str, torch.Tensor]:
        config = small_config(tmp_path / name, miniature_world, init_from=str(plain_run), train={"steps": 4, **train})
        train_from_config(config, evaluate=False)
        return weights(config.output)

    before = weights(plain_run)

    def distance(other: dict[str, torch.Tensor]) -> float:
        name = "shortcuts.head.learned.projection.weight"
        return float((other[name] - before[name]).norm())

    plain, near = tuned("plain"), tuned("near", start_distillation=30.0)
    assert 0 < distance(near) < distance(plain)
    again = tuned("again", start_distillation=30.0)
    assert all(torch.equal(tensor, again[name]) for name, tensor in near.items())


def test_it_needs_a_detector_to_start_from(miniature_world, tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"train\.start_distillation needs init_from"):
        small_config(tmp_path, miniature_world, train={"start_distillation": 1.0})
