"""Losses on held-out images are measured without stochastic depth, whatever the student trains with."""

from small_alignment import small_align_config, write_clip_folder, write_images

from ovd.alignment.data import alignment_data
from ovd.build.alignment import build_distillation, load_unlabeled_images
from ovd.build.detector import load_configured_clip
from ovd.data.report import DataReport


def test_stochastic_depth_is_off_while_losses_are_measured_and_on_again_afterwards(tmp_path):
    source = write_clip_folder(tmp_path / "clip", "vit")
    boxes = {"random": 2, "proposals": 0, "sides": [0.2, 0.6]}
    config = small_align_config(
        tmp_path / "run", write_images(tmp_path / "images", 2), clip={"name": str(source)}, boxes=boxes
    )
    distillation = build_distillation(config, load_configured_clip(config.clip))
    data = alignment_data(
        load_unlabeled_images(config.data), config, DataReport(), size_divisor=distillation.size_divisor
    )
    expected = distillation.measure(data.held_out())
    distillation.student.set_drop_path(0.9)
    assert distillation.measure(data.held_out()) == expected
    assert distillation.student.drops_paths
