"""The learning rate of each parameter group of a detector."""

import pytest
from small_run import small_config

from ovd.build.detector import build_detector
from ovd.clip.load import load_clip
from ovd.engine.detector_groups import build_groups


@pytest.mark.parametrize("kind", ["gated", "none"])
def test_every_parameter_learns_in_exactly_one_group(kind, miniature_world, tmp_path):
    config = small_config(tmp_path, miniature_world, detector={"shortcuts": {"kind": kind}})
    detector = build_detector(config, load_clip("tiny"))
    groups = build_groups(detector, config.train)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in detector.parameters() if p.requires_grad)
    rates = {group["name"].split("/")[0]: group["lr_factor"] for group in groups}
    assert rates["backbone"] == 0.1


def test_rates_and_weight_decay_are_the_configured_ones(miniature_world, tmp_path):
    train = {"gate_rate": 2.0, "logit_rate": 3.0, "weight_decay": 0.02}
    config = small_config(tmp_path, miniature_world, train=train)
    groups = build_groups(build_detector(config, load_clip("tiny")), config.train)
    assert {group["name"]: (group["lr_factor"], group["weight_decay"]) for group in groups} == {
        "backbone": (0.1, 0.02), "backbone/no_decay": (0.1, 0), "learned": (1, 0.02), "learned/no_decay": (1, 0),
        "gates/no_decay": (2, 0), "logit/no_decay": (3, 0),
    }  # fmt: skip
