"""Naming of true boxes against a box-by-box reference, and with detectors whose result is known."""

import copy
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from small_detector import build_detector
from torch.nn import functional as F

from ovd.data.annotations import load_annotations, load_truth
from ovd.data.images.read import read_image
from ovd.data.index import AnnotationIndex
from ovd.data.loading.loader import LoaderOptions
from ovd.data.report import DataReport
from ovd.evaluation.groups import group_average_precision
from ovd.evaluation.lvis import LVISEvaluator
from ovd.evaluation.naming import mean_over_boxes, measure_naming
from ovd.evaluation.naming_report import draw_naming, format_naming, write_naming
from ovd.evaluation.naming_results import GroupNaming, NamingReport
from ovd.evaluation.report import ClassRow
from ovd.inference import Inference
from ovd.model.assign import nearest_matched_points
from ovd.model.backbone_families import backbone_from_visual
from ovd.model.crop_encoder import CropEncoder, View
from ovd.model.detection_options import DetectionOptions
from ovd.model.detector import Detector
from ovd.model.gates import GatedProjection, ShortcutFilter
from ovd.model.normalization import Normalization
from ovd.model.score_calibration import ScoreCalibration, ScoreMap
from ovd.precision import Compute
from ovd.structures import Detections, Points
from ovd.text.encoder import encode_classes

SIZE = 96
CROP_SIDE = 64
LOADING = LoaderOptions(batch_size=4, workers=0)
NUM_IMAGES = 6


def build(clip, *, gated: bool) -> Detector:
    return build_detector(clip, *(("pyramid", "head") if gated else ())).eval()


def trained(clip) -> Detector:
    """Build a detector as if trained: its backbone has drifted and its learned path has an effect."""
    detector = build(clip, gated=True)
    for parameter in detector.backbone.parameters():
        parameter.data *= 1 + 0.05 * torch.randn_like(parameter)
    for module in detector.modules():
        if isinstance(module, GatedProjection):
            torch.nn.init.normal_(module.projection.weight, std=0.005)
        if isinstance(module, ShortcutFilter):
            torch.nn.init.normal_(module.weights.weight, std=0.01)
    return detector


def run_with(detector: Detector, size: int) -> Inference:
    return Inference(detector, size=size, options=DetectionOptions(), low_precision=False)


def make_crops(clip) -> CropEncoder:
    backbone = backbone_from_visual(copy.deepcopy(clip.model.visual))
    normalization = Normalization(clip.mean, clip.std)
    return CropEncoder(
        backbone, normalization, views=[View(CROP_SIDE, 1.0)], compute=Compute(torch.device("cpu"), False)
    )


def measure(
    detector: Detector,
    clip,
    text: torch.Tensor,
    index: AnnotationIndex,
    size: int = SIZE,
    loading: LoaderOptions = LOADING,
    **options,
) -> NamingReport:
    defaults = {"crops": make_crops(clip), "max_images": NUM_IMAGES}
    clip_backbone = backbone_from_visual(clip.model.visual)
    return measure_naming(run_with(detector, size), clip_backbone, text, index, loading, **{**defaults, **options})


@pytest.fixture(scope="module")
def index(miniature_world) -> AnnotationIndex:
    annotations = miniature_world / "annotations" / "lvis_val.json"
    return load_annotations(annotations, miniature_world / "images", format="lvis", report=DataReport())


@pytest.fixture(scope="module")
def text(tiny_clip, index) -> torch.Tensor:
    return encode_classes(tiny_clip, [category.name for category in index.categories], ("{}",))


NAMES = ["anchor", "gear", "umbrella"]


@pytest.fixture
def odd_images(tmp_path) -> AnnotationIndex:
    """Index in COCO's form without sides that are multiples of 32: an image with a box too small for any point, and one
    without boxes."""
    boxes = [[10, 4, 40, 50], [0, 0, 3, 3], [5, 60, 30, 30]]
    content = {
        "images": [
            {"id": 7, "height": 100, "width": 70, "file_name": "tall.png"},
            {"id": 9, "height": 41, "width": 90, "file_name": "wide.png"},
        ],
        "categories": [{"id": 10 * row, "name": name} for row, name in enumerate(NAMES)],
        "annotations": [
            {"id": number, "image_id": 7, "category_id": 10 * number, "bbox": box, "iscrowd": 0}
            for number, box in enumerate(boxes)
        ],
    }
    (tmp_path / "coco.json").write_text(json.dumps(content))
    generator = np.random.default_rng(0)
    for name, shape in (("tall.png", (100, 70, 3)), ("wide.png", (41, 90, 3))):
        Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)).save(tmp_path / name)
    return load_annotations(tmp_path / "coco.json", tmp_path, format="coco", report=DataReport())


def by_group(report: NamingReport) -> dict[str, GroupNaming]:
    return {item.group: item for item in report.groups}


def at_boxes(report: NamingReport) -> dict[str, float]:
    """Collect all numbers on the boxes in a report, each under its own name."""
    metrics = {
        f"{name}_{item.group}": value
        for item in report.groups
        for of in ({"count": item.boxes.count}, asdict(item.boxes.shares), asdict(item.boxes.cosines))
        for name, value in of.items()
    }
    return metrics | {"boxes_without_point": report.num_boxes_without_point}


def nearest_reference(points: Points, boxes: np.ndarray) -> list[int]:
    """Find the point of each box by FCOS's rules, box by box and point by point."""
    strides = points.strides.tolist()
    best = [(np.inf, -1)] * len(boxes)
    for point, ((x, y), stride) in enumerate(zip(points.centers.tolist(), strides, strict=True)):
        candidates = []
        for row, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
            sides = (x - x0, y - y0, x1 - x, y1 - y)
            offset = (x - (x0 + x1) / 2, y - (y0 + y1) / 2)
            lower = 0 if stride == min(strides) else 4 * stride
            upper = np.inf if stride == max(strides) else 8 * stride
            central = max(map(abs, offset)) < 1.5 * stride
            if min(sides) > 0 and central and lower < max(sides) <= upper:
                candidates.append(((x1 - x0) * (y1 - y0), row, np.hypot(*offset)))
        if candidates:
            _, row, distance = min(candidates)
            best[row] = min(best[row], (distance, point))
    return [point for _, point in best]


def mean_reference(dense: torch.Tensor, box: np.ndarray) -> torch.Tensor:
    """Compute the mean over 14 x 14 samples of a box, each interpolated between the four cells around it; stride 16."""
    channels, height, width = dense.shape
    total = torch.zeros(channels)
    for step_y in range(14):
        for step_x in range(14):
            x = (box[0] + (step_x + 0.5) / 14 * (box[2] - box[0])) / 16 - 0.5
            y = (box[1] + (step_y + 0.5) / 14 * (box[3] - box[1])) / 16 - 0.5
            x, y = min(max(x, 0), width - 1), min(max(y, 0), height - 1)
            left, top = int(x), int(y)
            right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
            upper = dense[:, top, left] * (left + 1 - x) + dense[:, top, right] * (x - left)
            lower = dense[:, bottom, left] * (left + 1 - x) + dense[:, bottom, right] * (x - left)
            total += upper * (top + 1 - y) + lower * (y - top)
    return F.normalize(total, dim=0)


def crop_reference(pixels: np.ndarray, box: np.ndarray, clip) -> torch.Tensor:
    """Compute CLIP's own embedding of the square around the box, cut at whole pixels out of a canvas of the mean
    color."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (clip.mean, clip.std))
    side = int(max(box[2] - box[0], box[3] - box[1]))
    left, top = (round((low + high - side) / 2) for low, high in ((box[0], box[2]), (box[1], box[3])))
    normalized = (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - mean) / std
    canvas = F.pad(normalized, (200, 200, 200, 200))
    crop = canvas[None, :, top + 200 : top + 200 + side, left + 200 : left + 200 + side]
    crop = F.interpolate(crop, size=(CROP_SIDE, CROP_SIDE), mode="bilinear", antialias=True)
    return clip.model.encode_image(crop, normalize=True)[0]


def test_means_over_boxes_are_those_of_a_loop_over_samples():
    """Means over boxes equal a loop over samples, for boxes inside, across the border, smaller than a cell and as large
    as the map, which is not square."""
    dense = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[10.0, 20, 50, 44], [0, 0, 9, 6], [90, 60, 112, 80], [0, 0, 112, 80]])
    images = torch.tensor([0, 1, 1, 0])
    found = mean_over_boxes(dense, images, boxes, 16)
    for row, (image, box) in enumerate(zip(images.tolist(), boxes.numpy(), strict=True)):
        torch.testing.assert_close(found[row], mean_reference(dense[image], box), atol=1e-5, rtol=0)
    assert mean_over_boxes(dense, images[:0], boxes[:0], 16).shape == (0, 3)


def test_figures_are_those_of_a_reference(tiny_clip, index, text):
    """The report's numbers equal a reference that takes CLIP's dense feature from a fresh gated detector (shown to be
    equal in test_alignment.py)."""
    detector, clip = trained(tiny_clip), build(tiny_clip, gated=True)
    drifted = build(tiny_clip, gated=True)
    drifted.backbone.load_state_dict(detector.backbone.state_dict())
    mean, std = (255 * torch.tensor(values).view(3, 1, 1) for values in (tiny_clip.mean, tiny_clip.std))
    rows: list[list[float]] = []
    box_rows: list[list[float]] = []
    rare = [row for row, category in enumerate(index.categories) if category.frequency == "r"]
    point_rows: list[list[float]] = []
    frequencies, num_without = [], 0
    for image in np.linspace(0, len(index) - 1, NUM_IMAGES).round().astype(int).tolist():
        record = index.record(image)
        pixels = read_image(record.path, expected_size=(record.height, record.width))
        assert pixels.shape == (192, 192, 3)
        images = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        with torch.no_grad():
            before, backbone, after = (F.normalize(d(images).embeddings[0], dim=1) for d in (clip, drifted, detector))
            dense = clip.backbone.dense((images - mean) / std)[0]
        named = [(feature @ text.T).argmax(dim=1).tolist() for feature in (before, after)]
        cosines = [(feature * before).sum(dim=1).tolist() for feature in (after, backbone)]
        points = detector.points(images)
        strides = points.strides.tolist()
        for box, cls, nearest in zip(
            record.labels.boxes, record.labels.classes, nearest_reference(points, record.labels.boxes), strict=True
        ):
            if nearest < 0:
                num_without += 1
                continue
            for point, (x, y) in enumerate(points.centers.tolist()):
                inside = box[0] < x < box[2] and box[1] < y < box[3]
                if inside and strides[point] == strides[nearest]:
                    row = [*(float(names[point] == cls) for names in named), *(values[point] for values in cosines)]
                    point_rows.append(row)
                    if point == nearest:
                        rows.append(row)
                        with torch.no_grad():
                            ways = [before[point], mean_reference(dense, box), crop_reference(pixels, box, tiny_clip)]
                        ways.append(after[point])
                        box_rows.append(
                            [float((way @ text.T).argmax() == cls) for way in ways]
                            + [float(rare[int((way @ text[rare].T).argmax())] == cls) for way in ways]
                        )
                        frequencies.append(index.categories[cls].frequency)
    assert len(rows) > 15

    report = measure(detector, tiny_clip, text, index, size=192)
    found = by_group(report)
    assert report.num_boxes_without_point == num_without
    assert (report.num_images, report.num_classes) == (NUM_IMAGES, len(index.categories))
    for group, letters in {"all": "rcf", "base": "cf", "rare": "r", "common": "c", "frequent": "f"}.items():
        chosen = np.array([row for row, letter in zip(rows, frequencies, strict=True) if letter in letters])
        figures = found[group].boxes
        assert figures.count == len(chosen)
        shares, similar = figures.shares, figures.cosines
        values = (shares.naming_before, shares.naming_after, similar.cosine, similar.backbone_cosine)
        np.testing.assert_allclose(values, chosen.mean(axis=0), atol=1e-4)
        right = np.array([row for row, letter in zip(box_rows, frequencies, strict=True) if letter in letters])
        assert shares.naming_mean == pytest.approx(right[:, 1].mean(), abs=1e-6)
        # The reference cuts at whole pixels, so a crop may get another name.
        assert shares.naming_crop == pytest.approx(right[:, 2].mean(), abs=1.5 / len(right))
    of_rare = np.array([row for row, letter in zip(box_rows, frequencies, strict=True) if letter == "r"]).mean(axis=0)
    among_rare = vars(report.rare_among_rare)
    bias = vars(report.base_bias)
    assert list(among_rare) == list(bias) == ["naming_before", "naming_mean", "naming_crop", "naming_after"]
    for number, name in enumerate(among_rare):
        tolerance = 1.5 / found["rare"].boxes.count if name == "naming_crop" else 1e-6
        assert among_rare[name] == pytest.approx(of_rare[4 + number], abs=tolerance)
        assert bias[name] == pytest.approx(among_rare[name] - getattr(found["rare"].boxes.shares, name))
    inside = found["all"].points
    assert inside.count == len(point_rows)
    values = (inside.before, inside.after, inside.cosines.cosine, inside.cosines.backbone_cosine)
    np.testing.assert_allclose(values, np.mean(point_rows, axis=0), atol=1e-4)
    all_boxes = found["all"].boxes
    shares, similar = all_boxes.shares, all_boxes.cosines
    assert sum(item.count for item in report.confusions) == round((1 - shares.naming_after) * all_boxes.count)
    assert all(item.name != item.named and item.count <= item.of for item in report.confusions)
    assert shares.naming_before != shares.naming_after
    assert 0.2 < similar.cosine < similar.backbone_cosine < 0.99


def test_a_fresh_gated_detector_has_kept_everything(tiny_clip, index, text):
    report = measure(build(tiny_clip, gated=True), tiny_clip, text, index)
    assert [item.group for item in report.groups] == ["all", "base", "rare", "common", "frequent"]
    for item in report.groups:
        assert item.boxes.shares.naming_after == item.boxes.shares.naming_before
        assert item.points.after == item.points.before
        for cosines in (item.boxes.cosines, item.points.cosines):
            assert cosines.cosine == pytest.approx(1, abs=1e-5)
            assert cosines.backbone_cosine == pytest.approx(1, abs=1e-5)
    assert by_group(report)["all"].boxes.shares.naming_before > 0.15


def test_a_random_detector_without_shortcuts_names_by_chance(tiny_clip, index, text):
    figures = by_group(measure(build(tiny_clip, gated=False), tiny_clip, text, index))["all"].points
    assert figures.count > 100
    assert figures.before > 0.15
    assert figures.after < 0.03  # chance is 1 in 287
    assert abs(figures.cosines.cosine) < 0.2
    assert figures.cosines.backbone_cosine == pytest.approx(1, abs=1e-5)


def test_the_batch_size_and_workers_do_not_matter(tiny_clip, index, text):
    detector = trained(tiny_clip)
    one = at_boxes(measure(detector, tiny_clip, text, index, loading=LoaderOptions(1, workers=0), max_images=5))
    other = at_boxes(measure(detector, tiny_clip, text, index, loading=LoaderOptions(3, workers=1), max_images=5))
    assert one == pytest.approx(other, abs=1e-5)


def test_odd_images_a_box_without_a_point_and_no_frequencies(tiny_clip, odd_images):
    report = measure(
        build(tiny_clip, gated=True), tiny_clip, encode_classes(tiny_clip, NAMES, ("{}",)), odd_images, size=100
    )
    (item,) = report.groups
    assert item.group == "all"
    assert item.boxes.count == 2
    assert report.num_boxes_without_point == 1
    assert item.boxes.cosines.cosine == pytest.approx(1, abs=1e-5)
    assert item.boxes.shares.naming_after == item.boxes.shares.naming_before
    assert (report.rare_among_rare, report.base_bias) == (None, None)
    # P3 has points at 4, 12, 20 .. in x and y; these are inside (10, 4) to (50, 54) and (5, 60) to (35, 90).
    assert item.points.count == 5 * 6 + 3 * 3


@pytest.mark.pictures
def test_without_boxes_there_is_nothing_to_tell(tiny_clip, odd_images, tmp_path):
    text = encode_classes(tiny_clip, NAMES, ("{}",))
    report = measure(build(tiny_clip, gated=True), tiny_clip, text, odd_images, max_images=0)
    assert report == NamingReport((), num_classes=3, num_images=0, num_boxes_without_point=0, crop_side_px=CROP_SIDE)
    assert at_boxes(report) == {"boxes_without_point": 0}
    assert "0 images" in format_naming(report, {})
    write_naming(report, tmp_path / "run")
    assert (tmp_path / "run" / "naming.png").is_file()


def test_faulty_calls_are_refused(tiny_clip, odd_images):
    detector = build(tiny_clip, gated=True)
    with pytest.raises(ValueError, match=r"coco\.json has 3 classes, but the number of text rows is 2"):
        measure(detector, tiny_clip, torch.ones(2, 256), odd_images)
    with pytest.raises(AssertionError, match="own backbone"):
        measure_naming(
            run_with(detector, 64), detector.backbone, torch.ones(3, 256), odd_images, LOADING,
            crops=make_crops(tiny_clip),
        )  # fmt: skip


def test_the_nearest_point_is_one_of_those_matched():
    centers = torch.tensor([[4.0, 4], [12, 4], [20, 4], [8, 4], [30, 4]])
    points = Points(centers, torch.full((5,), 8.0))
    boxes = torch.tensor([[0.0, 0, 16, 8], [10, 0, 30, 8], [50, 0, 60, 8]])
    # The middle point of the first box is not matched; of the two equally near ones, the first is taken.
    matched = torch.tensor([0, 0, 1, -1, 1])
    assert nearest_matched_points(points, boxes, matched).tolist() == [0, 2, -1]
    assert nearest_matched_points(points, boxes[:0], torch.full((5,), -1)).tolist() == []


def class_row(frequency: str, average_precision: float) -> ClassRow:
    return ClassRow(1, "name", frequency, 1, 1, average_precision, 0.0, 0.0)


def test_precision_of_groups_leaves_out_classes_without_boxes():
    rows = [class_row("c", 0.2), class_row("f", 0.6), class_row("f", -1.0), class_row("f", 0.4), class_row("r", -1.0)]
    found = group_average_precision(rows)
    assert found == pytest.approx({"all": 0.4, "base": 0.4, "common": 0.2, "frequent": 0.5})
    assert group_average_precision([class_row("", 0.3)]) == {"all": 0.3}
    assert group_average_precision([]) == {}


def test_precision_of_groups_is_that_of_the_evaluator(index):
    evaluator = LVISEvaluator(
        load_truth(index.path, format="lvis"), tuple(category.id for category in index.categories)
    )
    generator = torch.Generator().manual_seed(0)
    for image in range(len(index)):
        record = index.record(image)
        boxes = torch.tensor(record.labels.boxes) + 8 * torch.randn(len(record.labels.boxes), 1, generator=generator)
        scores = torch.linspace(0.9, 0.1, len(boxes))
        evaluator.update(record.id, Detections(boxes, scores, torch.tensor(record.labels.classes)))
    evaluation = evaluator.evaluate()
    found = group_average_precision(evaluation.classes)
    for group, name in {"all": "AP", "rare": "APr", "common": "APc", "frequent": "APf"}.items():
        assert found[group] == pytest.approx(evaluation.metrics[name])  # type: ignore[index]
        assert 0.05 < evaluation.metrics[name] < 0.95


def assert_legend_is_whole(figure: Figure) -> None:
    """Check that the legend of a figure, once drawn, lies inside it."""
    figure.draw_without_rendering()
    (legend,) = figure.legends
    extent = legend.get_window_extent()
    assert extent.x0 >= 0
    assert extent.x1 <= figure.bbox.width


@pytest.mark.pictures
def test_report(tiny_clip, index, text, tmp_path):
    report = measure(trained(tiny_clip), tiny_clip, text, index)
    metrics = at_boxes(report)
    assert len(metrics) == 5 * 7 + 1
    rare = by_group(report)["rare"].boxes
    shares, cosines = rare.shares, rare.cosines
    assert metrics["naming_after_rare"] == shares.naming_after
    assert metrics["count_rare"] == rare.count

    table = format_naming(report, {"rare": 0.1234}).splitlines()
    lines = {line[:15].strip(): line[15:].split() for line in table if line}
    before, after = 100 * shares.naming_before, 100 * shares.naming_after
    assert lines["rare"] == [
        f"{rare.count}", f"{before:.2f}", f"{100 * shares.naming_mean:.2f}", f"{100 * shares.naming_crop:.2f}",
        f"{after:.2f}", f"{after - before:+.2f}", f"{cosines.cosine:.3f}", f"{cosines.backbone_cosine:.3f}", "12.34",
    ]  # fmt: skip
    for title, of_rare in (("rare among rare", report.rare_among_rare), ("base bias", report.base_bias)):
        assert lines[title] == [f"{rare.count}", *(f"{100 * share:.2f}" for share in vars(of_rare).values())]
    assert lines["base"][-1] == "-"
    assert len(lines["classes"]) == len(lines["rare"])

    for num_groups in range(1, len(report.groups) + 1):
        for rare_among_rare in (None, report.rare_among_rare):
            part = replace(report, groups=report.groups[:num_groups], rare_among_rare=rare_among_rare)
            assert_legend_is_whole(draw_naming(part))

    (legend,) = draw_naming(report).legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "CLIP at a point", "CLIP, mean over the box", "CLIP on the crop (reference)", "detector",
    ]  # fmt: skip
    of_one_group = draw_naming(replace(report, groups=report.groups[:1], rare_among_rare=None))
    of_one_group.draw_without_rendering()
    place = of_one_group.legends[0].get_window_extent()
    assert of_one_group.bbox.x0 <= place.x0 < place.x1 <= of_one_group.bbox.x1
    write_naming(report, tmp_path)
    stored = json.loads((tmp_path / "naming.json").read_text())
    assert [item["group"] for item in stored["groups"]] == ["all", "base", "rare", "common", "frequent"]
    assert list(stored) == [
        "groups", "num_classes", "num_images", "num_boxes_without_point", "crop_side_px", "rare_among_rare",
        "base_bias", "confusions",
    ]  # fmt: skip
    at_points = ["count", "naming_before", "naming_after", "cosine", "backbone_cosine"]
    assert list(stored["groups"][2]["points"]) == at_points
    assert list(stored["groups"][2]["boxes"]) == [*at_points, "naming_mean", "naming_crop"]
    assert {f"{name}_rare": value for name, value in stored["groups"][2]["boxes"].items()}.items() <= metrics.items()
    assert stored["rare_among_rare"] == vars(report.rare_among_rare)
    assert stored["base_bias"] == vars(report.base_bias)
    assert stored["num_images"] == NUM_IMAGES
    with Image.open(tmp_path / "naming.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 10
    assert {path.name for path in Path(tmp_path).iterdir()} == {"naming.json", "naming.png"}


def test_confusions_say_which_name_a_box_got_in_place_of_its_own(tiny_clip, text, index):
    """Confusions list the name that a box got instead of its own: with only two different text rows, boxes of all
    classes get the first name of either row."""
    common = F.normalize(text.mean(dim=0), dim=0)
    rows = -common.expand(len(text), -1).clone()
    rows[3] = common
    report = measure(build(tiny_clip, gated=True), tiny_clip, rows, index)
    assert {item.named for item in report.confusions} <= {index.categories[row].name for row in (0, 3)}
    assert len({item.name for item in report.confusions}) > 2


def test_more_images_than_there_are_are_not_looked_at_twice(tiny_clip, odd_images):
    rows = encode_classes(tiny_clip, NAMES, ("{}",))
    detector = build(tiny_clip, gated=True)
    found = [measure(detector, tiny_clip, rows, odd_images, max_images=most) for most in (20, None)]
    assert found[0] == found[1]
    assert found[0].num_images == 2


def test_a_bias_towards_trained_names_is_taken_off_for_the_detector_alone(tiny_clip, text, index):
    detector, crops = build(tiny_clip, gated=True), make_crops(tiny_clip)
    score_map = ScoreMap(1.0, 1.0, 0.0, 0.0)
    reports = []
    for bias in (0.0, 3.0):
        inference = run_with(detector, SIZE)
        inference.calibration = ScoreCalibration(bias, score_map, 0.5, inference.options, text[::2])
        clip_backbone = backbone_from_visual(copy.deepcopy(tiny_clip.model.visual))
        reports.append(
            measure_naming(inference, clip_backbone, text, index, LOADING, crops=crops, max_images=NUM_IMAGES)
        )
    plain, biased = (by_group(report)["all"].boxes.shares for report in reports)
    assert (plain.naming_before, plain.naming_mean, plain.naming_crop) == (
        biased.naming_before, biased.naming_mean, biased.naming_crop
    )  # fmt: skip
    assert plain.naming_after != biased.naming_after
    trained_names = {category.name for category in index.categories[::2]}
    assert not trained_names & {item.named for item in reports[1].confusions}
