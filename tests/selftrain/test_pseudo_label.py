"""The pseudo-labeling job on shards of small drawn images: right labels, every pair counted, always the same bytes."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from encoded_images import encode
from encoded_texts import encode_texts
from PIL import Image, ImageDraw
from run_files import bytes_of
from small_trained import small_trained

from ovd.build.trained import TrainedDetector
from ovd.config.labeling import LabelOptions
from ovd.data.images.read import read_image
from ovd.data.pairs.manifest import MANIFEST_NAME, list_shards
from ovd.data.pairs.pair import Pair
from ovd.data.pairs.tar import PairShards
from ovd.data.pairs.write import write_pair_shards
from ovd.data.report import DataError, DataReport
from ovd.inference import Inference
from ovd.jobs.label_pairs import LabelRequest, pseudo_label_run
from ovd.model.detection_options import DetectionOptions
from ovd.model.query_texts import QueryTexts
from ovd.model.score_calibration import ScoreCalibration, ScoreMap
from ovd.selftrain.labels import TeacherBoxes, read_labels
from ovd.selftrain.ledger import LabelCounts
from ovd.selftrain.pseudo_label import label_shards, resolve_worker, shards_of_worker
from ovd.selftrain.teacher import OvdTeacher, TextVariants
from ovd.text.bank import TextBank
from ovd.text.encoder import encode_classes, encode_tokens

ROOT = Path(__file__).parents[2]
CAPTIONS = ("a photo of a red gear", "an anchor and an umbrella", "we see two gears", "a blue anchor", "an umbrella")
CAPTION = LabelOptions(queries="caption", batch_size=4)
OPTIONS = DetectionOptions(score_threshold=0.05, nms_iou=0.6, max_detections=101, candidates=300)


def drawn_jpeg(seed: int, height: int = 64, width: int = 64) -> bytes:
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(60, 120, (height, width, 3)).astype(np.uint8))
    x, y = rng.integers(0, 30, 2).tolist()
    ImageDraw.Draw(image).rectangle((x, y, x + 24, y + 18), fill=tuple(rng.integers(0, 255, 3).tolist()))
    return encode(image, "JPEG")


def some_pairs(count: int) -> list[Pair]:
    return [
        Pair(f"{row:05d}", drawn_jpeg(row, 64, 48 + 8 * (row % 3)), CAPTIONS[row % len(CAPTIONS)], {})
        for row in range(count)
    ]


def shard_folder(folder: Path, pairs: list[Pair], pairs_per_shard: int = 6) -> Path:
    write_pair_shards(folder, pairs, pairs_per_shard=pairs_per_shard)
    return folder


class FixedTeacher:
    """A teacher that finds `boxes_per_text` boxes for every text, with falling scores, and records its queries."""

    name = "fixed"

    def __init__(self, boxes_per_text: int = 1, first_score: float = 0.9):
        self.boxes_per_text = boxes_per_text
        self.first_score = first_score
        self.asked: list[list[tuple[str, ...]]] = []

    def detect(self, images: list[np.ndarray], queries: list[tuple[str, ...]]) -> list[TeacherBoxes]:
        self.asked.append(queries)
        found = []
        for image, texts in zip(images, queries, strict=True):
            count = self.boxes_per_text * len(texts)
            corner = np.array([0, 0, *image.shape[1::-1]], np.float32)
            scores = np.linspace(self.first_score, 0.0, count, endpoint=False, dtype=np.float32)
            found.append(TeacherBoxes(np.tile(corner, (count, 1)), scores, np.arange(count) % max(len(texts), 1)))
        return found


@pytest.fixture(scope="module")
def captions_alone(tiny_clip) -> TextVariants:
    return TextVariants(tiny_clip, None)


@pytest.fixture(scope="module")
def trained(tiny_clip) -> TrainedDetector:
    """A fresh detector around the tiny CLIP."""
    return small_trained(tiny_clip, output="runs/fresh", train={"device": "cpu"}, eval={"candidates": 300})


def ovd_teacher(trained: TrainedDetector, texts: TextVariants) -> OvdTeacher:
    return OvdTeacher(inference_of(trained), texts, run="fresh")


def inference_of(trained: TrainedDetector) -> Inference:
    return Inference(trained.detector, size=64, options=OPTIONS, low_precision=False)


def ledger(output: Path, stem: str = "00000") -> dict:
    return json.loads((output / f"{stem}.json").read_text())


def assert_close(found: TeacherBoxes, expected: TeacherBoxes) -> None:
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-2)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    np.testing.assert_array_equal(found.texts, expected.texts)


def test_files_and_counts_say_what_became_of_every_pair(tmp_path, captions_alone):
    pairs = some_pairs(14)
    folder = shard_folder(tmp_path / "pairs", pairs)
    teacher = FixedTeacher()
    counts = label_shards(folder, tmp_path / "out", teacher, captions_alone, CAPTION)
    assert counts == LabelCounts(
        pairs=14, pairs_with_boxes=14, capped_pairs=0, boxes=14, texts=5 + 5 + 2, long_texts=0, reasons={}
    )
    assert sorted(bytes_of(tmp_path / "out")) == [
        f"0000{row}.{end}" for row in range(3) for end in ("json", "safetensors")
    ]
    assert [len(batch) for batch in teacher.asked] == [4, 2, 4, 2, 2]  # a batch never spans two shards
    manifest = {row["file"]: row for row in json.loads((folder / MANIFEST_NAME).read_text())["shards"]}
    for start, stem in zip(range(0, 14, 6), ("00000", "00001", "00002"), strict=True):
        labels, entry = read_labels(tmp_path / "out" / f"{stem}.safetensors"), ledger(tmp_path / "out", stem)
        of_shard = pairs[start : start + 6]
        assert labels.keys == tuple(pair.key for pair in of_shard)
        assert [labels.texts[labels.queries[row].item()] for row in range(len(of_shard))] == [
            pair.caption for pair in of_shard
        ]
        assert labels.image_sizes.tolist() == [[64, 48 + 8 * (int(pair.key) % 3)] for pair in of_shard]
        assert labels.boxes.values[:, 2:].tolist() == labels.image_sizes[:, ::-1].tolist()
        assert (entry["shard"]["samples"], entry["shard"]["sha256"]) == (
            manifest[f"{stem}.tar"]["samples"],
            manifest[f"{stem}.tar"]["sha256"],
        )
        content = (tmp_path / "out" / f"{stem}.safetensors").read_bytes()
        assert entry["labels"]["sha256"] == hashlib.sha256(content).hexdigest()
        assert entry["counts"]["pairs"] == len(of_shard)


def test_ovd_teacher_equals_detecting_in_one_image_after_another(trained, tiny_clip):
    """The teacher finds what the detector finds in one image after another; all images have one odd shape, so that
    padding in a batch is the same."""
    images = [read_image(drawn_jpeg(seed, 90, 60)) for seed in range(5)]
    queries = [("a gear",), ("an anchor", "a gear", "an umbrella"), (), ("a gear",), ("an umbrella", "an anchor")]
    teacher = ovd_teacher(trained, TextVariants(tiny_clip, None))
    found = teacher.detect(images, queries)
    for image, texts, of_image in zip(images, queries, found, strict=True):
        (alone,) = teacher.detect([image], [texts])
        assert_close(of_image, alone)
        if not texts:
            assert len(of_image.scores) == 0
            continue
        expected = inference_of(trained).image(QueryTexts(encode_texts(tiny_clip, list(texts))), image)
        assert len(expected.scores) > 3
        assert_close(of_image, TeacherBoxes(expected.boxes.numpy(), expected.scores.numpy(), expected.classes.numpy()))
    assert teacher.detect([], []) == []


@pytest.mark.parametrize(("height", "width"), [(200, 100), (48, 160)])
def test_boxes_are_in_pixels_of_their_own_image(trained, captions_alone, height, width):
    """Boxes are in pixels of their own image in a batch with another shape; boxes that reach the border show it."""
    images = [np.full((64, 64, 3), 90, np.uint8), read_image(drawn_jpeg(0, height, width))]
    found = ovd_teacher(trained, captions_alone).detect(images, [("a gear",)] * 2)[1]
    assert (found.boxes >= 0).all()
    assert found.boxes[:, 2].max() == pytest.approx(width, rel=0.02)
    assert found.boxes[:, 3].max() == pytest.approx(height, rel=0.02)


def test_images_thinner_than_the_points_are_apart_have_boxes_inside_them(trained, captions_alone):
    shapes = ((1, 300), (37, 1), (64, 64))
    images = [read_image(drawn_jpeg(0, *shape)) for shape in shapes]
    found = ovd_teacher(trained, captions_alone).detect(images, [("a gear",)] * 3)
    for of_image, (height, width) in zip(found, shapes, strict=True):
        assert len(of_image.scores) > 0
        assert (of_image.boxes >= 0).all()
        assert (of_image.boxes <= (width, height, width, height)).all()


def test_what_is_asked_is_the_mean_over_the_templates(trained, tiny_clip):
    templates = ("{}", "a photo of {article} {}")
    texts = TextVariants(tiny_clip, templates)
    names = ["chess_king_(outlined)", "anchor", "umbrella"]
    variants = texts.load(names)
    assert variants.shape == (3, 2, 256)
    torch.testing.assert_close(texts.means(names[::-1]), encode_classes(tiny_clip, names[::-1], templates))
    expected = encode_texts(tiny_clip, ["anchor", "a photo of an anchor"])
    np.testing.assert_allclose(variants[1], expected, atol=2e-3)
    texts.load(["gear"])
    assert "anchor" not in texts
    image = read_image(drawn_jpeg(0))
    (found,) = ovd_teacher(trained, texts).detect([image], [("umbrella",)])  # a text that was not loaded before
    (expected_boxes,) = ovd_teacher(trained, TextVariants(tiny_clip, templates)).detect([image], [("umbrella",)])
    assert_close(found, expected_boxes)


def test_a_text_bank_reads_the_labels_and_its_rows_are_the_texts(tmp_path, tiny_clip):
    folder = shard_folder(tmp_path / "pairs", some_pairs(6))
    texts = TextVariants(tiny_clip, ("{}", "a photo of {article} {}"))
    label_shards(folder, tmp_path / "out", FixedTeacher(), texts, LabelOptions(queries="nouns"))
    bank = TextBank(tmp_path / "out" / "00000.safetensors", text_tower=texts.text_tower)
    assert bank.names == ("gear", "anchor", "umbrella")
    expected = encode_texts(tiny_clip, ["gear", "a photo of a gear", "umbrella", "a photo of an umbrella"])
    rows = bank.rows(np.array([0, 0, 2, 2]), np.array([0, 1, 0, 1]))
    torch.testing.assert_close(rows, expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize("queries", ["caption", "ngrams", "nouns", "classes"])
def test_captions_with_nothing_to_ask_for_are_rows_with_their_reason(tmp_path, captions_alone, queries):
    captions = ["an anchor", "", " \n", "caf\ufffd", "an anchor", "gear " * 300, "!!", "of the", "naïve 名前"]
    folder = shard_folder(
        tmp_path / "pairs", [Pair(f"{row}", drawn_jpeg(row), text, {}) for row, text in enumerate(captions)], 20
    )
    options = LabelOptions(queries=queries, classes=("gear", "anchor") if queries == "classes" else ())
    counts = label_shards(folder, tmp_path / "out", FixedTeacher(), captions_alone, options)
    labels = read_labels(tmp_path / "out" / "00000.safetensors")
    if queries == "classes":  # captions are not used
        assert labels.reasons == (None,) * len(captions)
        assert labels.texts == ("gear", "anchor")
        assert [labels.queries[row].tolist() for row in range(len(captions))] == [[0, 1]] * len(captions)
        return
    for row, words in ((1, "empty"), (2, "empty"), (3, "not UTF-8"), (5, "1500 characters"), (6, "no query")):
        reason = str(labels.reasons[row])
        assert reason.startswith("F30 the caption ")
        assert words in reason
        assert len(labels.queries[row]) == len(labels.boxes[row]) == 0
        assert labels.image_sizes[row].tolist() == [64, 64]
    assert labels.reasons[0] is labels.reasons[4] is labels.reasons[8] is None
    assert labels.queries[0].tolist() == labels.queries[4].tolist()  # both captions give the same text
    assert len(set(labels.texts)) == len(labels.texts) == counts.texts
    assert counts.pairs == len(captions)
    assert counts.reasons == {"F30": sum(map(bool, labels.reasons))}
    (ledger,) = (json.loads(path.read_text()) for path in (tmp_path / "out").glob("*.json"))
    assert ledger["left_out"] == {
        "F30": [f"{key}: {reason.message}" for key, reason in zip(labels.keys, labels.reasons, strict=True) if reason]
    }


def test_texts_beyond_the_context_are_counted(tmp_path, captions_alone):
    captions = ["gear", "an anchor " * 20, "umbrella"]
    folder = shard_folder(
        tmp_path / "pairs", [Pair(f"{row}", drawn_jpeg(row), text, {}) for row, text in enumerate(captions)]
    )
    counts = label_shards(folder, tmp_path / "out", FixedTeacher(), captions_alone, CAPTION)
    assert (counts.texts, counts.long_texts, counts.reasons) == (3, 1, {})


def with_broken_images(pairs: list[Pair], broken: list[int]) -> list[Pair]:
    return [
        Pair(pair.key, pair.image[:300] if row in broken else pair.image, pair.caption, {})
        for row, pair in enumerate(pairs)
    ]


def test_unreadable_images_are_rows_with_their_reason(tmp_path, captions_alone):
    folder = shard_folder(tmp_path / "pairs", with_broken_images(some_pairs(9), [0, 4, 5, 8]), 9)
    counts = label_shards(folder, tmp_path / "out", FixedTeacher(), captions_alone, CAPTION)
    labels = read_labels(tmp_path / "out" / "00000.safetensors")
    assert [row for row, reason in enumerate(labels.reasons) if reason is not None and reason.code == "F9"] == [
        0,
        4,
        5,
        8,
    ]
    assert (labels.image_sizes[[0, 4, 5, 8]] == 0).all()
    assert counts.reasons == {"F9": 4}
    assert counts.pairs_with_boxes == 5


def test_too_many_unreadable_images_stop_the_job_however_often_it_is_started(tmp_path, captions_alone):
    folder = shard_folder(tmp_path / "pairs", with_broken_images(some_pairs(30), [0, 4, 11, 20, 29]), 6)
    for _ in range(2):  # at the second start, four shards are done
        with pytest.raises(
            DataError, match=r"pairs: 5 of 30 skipped.*00000\.tar:00000: .*cannot be.*remove these"
        ) as caught:
            label_shards(folder, tmp_path / "out", FixedTeacher(), captions_alone, CAPTION)
        assert caught.value.code == "F9"
        assert sorted(path.name for path in (tmp_path / "out").glob("*.json")) == [
            f"0000{row}.json" for row in range(4)
        ]


def test_a_shard_with_too_much_text_is_refused_before_the_teacher_works(tmp_path, captions_alone, monkeypatch):
    monkeypatch.setattr("ovd.selftrain.labels._MAX_HEADER_BYTES", 100_200)
    folder, teacher = shard_folder(tmp_path / "pairs", some_pairs(6)), FixedTeacher()
    with pytest.raises(ValueError, match=r"00000\.safetensors: 5 texts and the keys .* make shards with fewer pairs"):
        label_shards(folder, tmp_path / "out", teacher, captions_alone, LabelOptions(queries="caption"))
    assert teacher.asked == []


def test_the_same_texts_are_encoded_once_for_all_shards(tmp_path, tiny_clip, monkeypatch):
    encoded: list[int] = []

    def encode(clip, tokens):
        encoded.append(len(tokens))
        return encode_tokens(clip, tokens)

    monkeypatch.setattr("ovd.selftrain.teacher.encode_tokens", encode)
    folder, texts = shard_folder(tmp_path / "pairs", some_pairs(4), 2), TextVariants(tiny_clip, ("{}", "a {}"))
    options = LabelOptions(queries="classes", classes=("gear", "anchor"))
    label_shards(folder, tmp_path / "out", FixedTeacher(), texts, options)
    assert encoded == [4]
    banks = [TextBank(tmp_path / "out" / f"0000{shard}.safetensors") for shard in (0, 1)]
    first, second = (bank.rows(np.array([0, 1]), np.array([1, 0])) for bank in banks)
    torch.testing.assert_close(first, second, atol=0, rtol=0)
    texts.load(["anchor", "gear"])  # another order of texts is another file
    assert encoded == [4, 4]


def test_no_boxes_and_too_many(tmp_path, captions_alone):
    folder = shard_folder(tmp_path / "pairs", some_pairs(3))
    none = label_shards(folder, tmp_path / "none", FixedTeacher(0), captions_alone, CAPTION)
    assert (none.pairs, none.pairs_with_boxes, none.boxes, none.reasons) == (3, 0, 0, {})
    weak = label_shards(folder, tmp_path / "weak", FixedTeacher(1, first_score=0.05), captions_alone, CAPTION)
    assert weak.boxes == 0
    many = label_shards(folder, tmp_path / "many", FixedTeacher(100_000), captions_alone, CAPTION)
    assert (many.boxes, many.capped_pairs) == (300, 3)
    labels = read_labels(tmp_path / "many" / "00000.safetensors")
    assert labels.scores[1].tolist() == np.linspace(0.9, 0, 100_000, endpoint=False, dtype=np.float32)[:100].tolist()
    exact = label_shards(folder, tmp_path / "exact", FixedTeacher(100, first_score=9), captions_alone, CAPTION)
    assert (exact.boxes, exact.capped_pairs) == (300, 0)


class Crowded(FixedTeacher):
    """A teacher that finds text 0 in 150 boxes, then text 1 in two."""

    def detect(self, images: list[np.ndarray], queries: list[tuple[str, ...]]) -> list[TeacherBoxes]:
        scores = np.linspace(0.9, 0.1, 152, dtype=np.float32)
        texts = np.repeat([0, 1], [150, 2])
        boxes = np.tile(np.array([0, 0, 9, 9], np.float32), (152, 1))
        return [TeacherBoxes(boxes, scores, texts) for _ in images]


def test_the_best_box_of_each_text_is_kept_beside_the_best_of_the_image(tmp_path, captions_alone):
    folder = shard_folder(tmp_path / "pairs", some_pairs(1))
    options = LabelOptions(queries="classes", classes=("gear", "anchor"))
    counts = label_shards(folder, tmp_path / "out", Crowded(), captions_alone, options)
    assert (counts.boxes, counts.capped_pairs) == (101, 1)
    labels = read_labels(tmp_path / "out" / "00000.safetensors")
    assert labels.box_texts[0].tolist() == [0] * 100 + [1]
    assert labels.scores[0][-1] == np.linspace(0.9, 0.1, 152, dtype=np.float32)[150]


def some_calibration(options: DetectionOptions, *, name_bias: float = 0.1, offset: float = 0.0) -> ScoreCalibration:
    text = torch.nn.functional.normalize(torch.ones(2, 256), dim=1)
    return ScoreCalibration(name_bias, ScoreMap(1.0, 1.0, offset, 0.0), 0.3, options, text)


def test_the_name_of_a_teacher_tells_calibrations_apart_that_change_its_boxes(trained, captions_alone):
    def name(calibration: ScoreCalibration | None) -> str:
        inference = Inference(trained.detector, size=64, options=OPTIONS, low_precision=False, calibration=calibration)
        return OvdTeacher(inference, captions_alone, run="fresh").name

    other_texts = replace(some_calibration(OPTIONS), trained_text=torch.eye(2, 256))
    different = [None, some_calibration(OPTIONS), some_calibration(OPTIONS, offset=1.0), other_texts]
    assert len({name(calibration) for calibration in different}) == 4
    assert name(some_calibration(OPTIONS)) == name(some_calibration(OPTIONS))
    assert "calibration sha256 " in name(some_calibration(OPTIONS))
    without_effect = some_calibration(DetectionOptions(competition=20), name_bias=0.0)
    assert name(without_effect) == name(None)
    assert name(replace(without_effect, name_bias=0.1)) != name(None)


def test_best_boxes_come_first_whatever_the_teacher_does(tmp_path, captions_alone):
    class Unordered(FixedTeacher):
        def detect(self, images: list[np.ndarray], queries: list[tuple[str, ...]]) -> list[TeacherBoxes]:
            boxes = np.arange(16, dtype=np.float32).reshape(4, 4)
            scores = np.array([0.2, 0.9, 0.04, 0.2], np.float32)
            return [TeacherBoxes(boxes, scores, np.zeros(4, np.int64)) for _ in images]

    label_shards(shard_folder(tmp_path / "pairs", some_pairs(1)), tmp_path, Unordered(), captions_alone, CAPTION)
    labels = read_labels(tmp_path / "00000.safetensors")
    assert labels.scores[0] == pytest.approx([0.9, 0.2, 0.2])
    assert labels.boxes[0][:, 0].tolist() == [4, 0, 12]


def test_a_teacher_that_gives_nan_stops(tmp_path, captions_alone):
    folder = shard_folder(tmp_path / "pairs", some_pairs(1))
    with pytest.raises(ValueError, match="fixed, image of 00000: a box or score is NaN"):
        label_shards(folder, tmp_path / "out", FixedTeacher(1, float("nan")), captions_alone, CAPTION)
    assert bytes_of(tmp_path / "out") == {}


def test_done_shards_are_passed_over(tmp_path, captions_alone, capsys):
    folder = shard_folder(tmp_path / "pairs", with_broken_images(some_pairs(14), [3]))
    whole = label_shards(folder, tmp_path / "out", FixedTeacher(), captions_alone, CAPTION)
    before = bytes_of(tmp_path / "out")
    (tmp_path / "out" / "00001.json").unlink()
    capsys.readouterr()
    teacher = FixedTeacher()
    assert label_shards(folder, tmp_path / "out", teacher, captions_alone, CAPTION) == whole
    assert sum(map(len, teacher.asked)) == 6
    assert capsys.readouterr().out == f"{tmp_path / 'out'}: 2 of 3 shards already labeled\n"
    assert bytes_of(tmp_path / "out") == before


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_labels_file_is_made_again(tmp_path, captions_alone, capsys, damage):
    folder = shard_folder(tmp_path / "pairs", some_pairs(12))
    label_shards(folder, tmp_path / "out", FixedTeacher(), captions_alone, CAPTION)
    before = bytes_of(tmp_path / "out")
    victim = tmp_path / "out" / "00001.safetensors"
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.unlink()
    if damage != "remove":
        victim.write_bytes(content if damage == "flip" else content[:-1])
    label_shards(folder, tmp_path / "out", FixedTeacher(), captions_alone, CAPTION)
    assert f"{victim} is missing or does not match its ledger" in capsys.readouterr().out
    assert bytes_of(tmp_path / "out") == before


def test_other_settings_are_refused_and_named(tmp_path, captions_alone):
    folder, output = shard_folder(tmp_path / "pairs", some_pairs(12)), tmp_path / "out"
    label_shards(folder, output, FixedTeacher(), captions_alone, CAPTION)
    before = bytes_of(output)
    other_teacher = FixedTeacher()
    other_teacher.name = "another"
    for teacher, options, message in (
        (other_teacher, CAPTION, r"teacher was 'fixed', is 'another'"),
        (FixedTeacher(), LabelOptions(queries="nouns", batch_size=4), r"queries was 'caption', is 'nouns'"),
        (
            FixedTeacher(),
            LabelOptions(queries="caption", score_threshold=0.1, batch_size=4),
            r"score_threshold was 0\.05, is 0\.1",
        ),
        (
            FixedTeacher(),
            LabelOptions(queries="classes", classes=("gear",), batch_size=4),
            r"classes was '0 names.*, is '1 names",
        ),
    ):
        with pytest.raises(ValueError, match=rf"00000\.json was made with different settings: .*{message}.*--output"):
            label_shards(folder, output, teacher, captions_alone, options)
    folder = shard_folder(tmp_path / "others", some_pairs(13)[1:])
    with pytest.raises(ValueError, match=r"00000\.json was made with different settings: shard_sha256 was"):
        label_shards(folder, output, FixedTeacher(), captions_alone, CAPTION)
    assert bytes_of(output) == before
    (output / "00000.json").write_text("{}")
    with pytest.raises(ValueError, match=r"00000\.json is not a valid ledger of pseudo-labels .*another --output"):
        label_shards(folder, output, FixedTeacher(), captions_alone, CAPTION)


def test_without_a_manifest_the_ledger_holds_the_same(tmp_path, captions_alone):
    folder = shard_folder(tmp_path / "pairs", some_pairs(7))
    label_shards(folder, tmp_path / "with", FixedTeacher(), captions_alone, CAPTION)
    (folder / MANIFEST_NAME).unlink()
    for _ in range(2):
        label_shards(folder, tmp_path / "without", FixedTeacher(), captions_alone, CAPTION)
        assert bytes_of(tmp_path / "with") == bytes_of(tmp_path / "without")


def test_a_damaged_shard_stops_before_anything_is_labeled(tmp_path, captions_alone):
    folder = shard_folder(tmp_path / "pairs", some_pairs(12))
    content = (folder / "00001.tar").read_bytes()
    (folder / "00001.tar").write_bytes(content[:-1024])
    with pytest.raises(DataError, match=r"00001\.tar: .*expected 6 samples"):
        label_shards(folder, tmp_path / "out", FixedTeacher(), captions_alone, CAPTION)
    assert bytes_of(tmp_path / "out") == {}
    first = shards_of_worker(folder, rank=0, world=2)
    label_shards(folder, tmp_path / "out", FixedTeacher(), captions_alone, CAPTION, listed=first)  # only its own
    assert sorted(bytes_of(tmp_path / "out")) == ["00000.json", "00000.safetensors"]


def test_any_number_of_workers_writes_the_same_files(tmp_path, trained, tiny_clip):
    folder = shard_folder(tmp_path / "pairs", with_broken_images(some_pairs(13), [2]), 3)
    totals, options = [], LabelOptions(queries="nouns", batch_size=2)
    for world in (1, 3):
        counts = [
            pseudo_label_run(
                trained, LabelRequest(folder, tmp_path / str(world), options, templates="short"),
                listed=shards_of_worker(folder, rank=rank, world=world),
            )
            for rank in range(world)
        ]  # fmt: skip
        totals.append({name: sum(getattr(part, name) for part in counts) for name in ("pairs", "boxes", "texts")})
    assert bytes_of(tmp_path / "1") == bytes_of(tmp_path / "3")
    assert totals[0] == totals[1]
    assert totals[0]["pairs"] == len(PairShards(folder)) == 13
    assert totals[0]["boxes"] > 13
    settings = ledger(tmp_path / "1")["settings"]
    assert "runs/fresh sha256" in settings["teacher"]
    assert settings["text_tower"] == TextVariants(tiny_clip, None).text_tower
    labels = read_labels(tmp_path / "1" / "00000.safetensors")
    assert str(labels.reasons[2]).startswith("F9 ")
    assert (labels.scores.values > 0.05).all()


def test_the_first_shards_alone(tmp_path, captions_alone):
    folder = shard_folder(tmp_path / "pairs", some_pairs(12), 3)
    first = shards_of_worker(folder, num_shards=2)
    counts = label_shards(folder, tmp_path / "out", FixedTeacher(), captions_alone, CAPTION, listed=first)
    assert counts.pairs == 6
    assert len(list((tmp_path / "out").glob("*.json"))) == 2


@pytest.mark.parametrize("num_shards", [None, 0, 3, 7, 20])
@pytest.mark.parametrize("has_manifest", [True, False])
def test_workers_share_the_first_shards_in_turn(tmp_path, num_shards, has_manifest):
    folder = shard_folder(tmp_path / "pairs", some_pairs(7), 1)
    if not has_manifest:
        (folder / MANIFEST_NAME).unlink()
    everything = list_shards(folder)
    first = list(everything)[:num_shards]
    for world in (1, 2, 9):
        for rank in range(world):
            of_worker = shards_of_worker(folder, rank=rank, world=world, num_shards=num_shards)
            assert list(of_worker) == first[rank::world]
            assert of_worker.items() <= everything.items()


def test_shards_that_are_given_are_labeled_in_their_order_in_the_folder(tmp_path, captions_alone):
    folder = shard_folder(tmp_path / "pairs", some_pairs(13), 3)
    label_shards(folder, tmp_path / "all", FixedTeacher(), captions_alone, CAPTION)
    backwards = dict(reversed(shards_of_worker(folder, rank=1, world=2).items()))
    label_shards(folder, tmp_path / "some", FixedTeacher(), captions_alone, CAPTION, listed=backwards)
    assert sorted(bytes_of(tmp_path / "some")) == [
        f"0000{n}.{kind}" for n in (1, 3) for kind in ("json", "safetensors")
    ]
    assert bytes_of(tmp_path / "some").items() <= bytes_of(tmp_path / "all").items()


def test_workers_are_numbered_by_arguments_then_by_the_environment():
    torchrun = {"RANK": "3", "WORLD_SIZE": "8"}
    assert resolve_worker(1, 2, torchrun) == (1, 2)
    assert resolve_worker(None, None, torchrun) == (3, 8)
    assert resolve_worker(None, None, {}) == (0, 1)
    for rank, world, environment in ((1, None, {}), (None, 2, torchrun), (None, None, {"RANK": "1"})):
        with pytest.raises(ValueError, match=r"together|only one"):
            resolve_worker(rank, world, environment)
    with pytest.raises(ValueError, match="RANK and WORLD_SIZE are '' and '8'; set both to whole numbers"):
        resolve_worker(None, None, {"RANK": "", "WORLD_SIZE": "8"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queries": "classes"}, r"queries is 'classes', with 0 class names; `classes` needs"),
        ({"queries": "classes", "classes": ("a", "a")}, r"queries is 'classes', with 2 class names; .*distinct names"),
        ({"queries": "caption", "classes": ("a",)}, r"queries is 'caption', with 1 class name;"),
        ({"queries": "caption", "score_threshold": 0.1, "max_boxes": 0}, r"max_boxes\n.*greater than 0"),
        ({"queries": "caption", "batch_size": 0}, r"batch_size\n.*greater than 0"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LabelOptions(**options)


@pytest.mark.parametrize(("rank", "world"), [(1, 1), (-1, 2), (0, 0)])
def test_ranks_outside_the_world_are_refused(tmp_path, rank, world):
    with pytest.raises(ValueError, match="ranks must be from 0 to world - 1"):
        shards_of_worker(tmp_path, rank=rank, world=world)


KILLED_AND_RACED = """
import hashlib, json, os, random, shutil, signal, sys, threading, time, traceback
from pathlib import Path
import cv2, torch
from tqdm import tqdm
from ovd.build.detector import build_detector
from ovd.clip.load import load_clip
from ovd.config.labeling import LabelOptions
from ovd.config.training import TrainConfig
from ovd.config_files import parse_config
from ovd.inference import Inference
from ovd.model.detection_options import DetectionOptions
from ovd.selftrain.labels import read_labels
from ovd.selftrain.pseudo_label import label_shards
from ovd.selftrain.teacher import OvdTeacher, TextVariants

folder, repetitions, num_pairs = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
num_shards = num_pairs // 6
torch.set_num_threads(1)  # a forked child cannot use its parent's threads
cv2.setNumThreads(0)
tqdm.set_lock(threading.RLock())  # tqdm's own is shared with forked children, and one that is killed may hold it
randomness = random.Random(0)
torch.manual_seed(0)
values = {"output": "fresh", "detector": {"channels": 32, "num_convs": 1}, "train": {"steps": 1}}
clip = load_clip("tiny")
detector = build_detector(parse_config(values, TrainConfig, "test"), clip).eval()
texts = TextVariants(clip, ("{}", "a photo of {article} {}"))
options = DetectionOptions(score_threshold=0.05, nms_iou=0.6, max_detections=101, candidates=300)
teacher = OvdTeacher(Inference(detector, size=64, options=options, low_precision=False), texts, run="fresh")

def label(output):
    return label_shards(folder / "pairs", output, teacher, texts, LabelOptions(queries="nouns", batch_size=4))

def start(output):
    child = os.fork()
    if child == 0:
        try:
            label(output)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child

def check_published(output):
    for path in output.glob("*.safetensors"):
        read_labels(path)
    ledgers = list(output.glob("*.json"))
    for path in ledgers:
        described = json.loads(path.read_text())["labels"]
        assert hashlib.sha256((output / described["file"]).read_bytes()).hexdigest() == described["sha256"], path
    return len(ledgers)

def content(output):
    return {path.name: path.read_bytes() for path in output.iterdir()}

label(folder / "warm-up")
begin = time.monotonic()
counts = label(folder / "clean")
whole_s = time.monotonic() - begin
assert counts.pairs == num_pairs and counts.boxes > num_pairs, counts

killed = folder / "killed"
kills = inside = 0
longest_s = 1.6 * whole_s / repetitions
while kills < repetitions or not inside:
    assert kills < 10 * repetitions, "no kill came between the first shard and the last"
    kills += 1
    child = start(killed)
    time.sleep(randomness.uniform(0, longest_s))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    published = check_published(killed)
    inside += 0 < published < num_shards
    if published == 0:  # the machine is slower now than it was for the clean run
        longest_s *= 1.2
    elif published == num_shards:  # faster: nothing is left to kill
        shutil.rmtree(killed)
        longest_s /= 2
_, status = os.waitpid(start(killed), 0)
assert status == 0
assert content(killed) == content(folder / "clean"), "killed"

children = [start(folder / "raced") for _ in range(2)]
assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
assert content(folder / "raced") == content(folder / "clean"), "raced"
print(kills, inside)
"""


@pytest.mark.parametrize(("repetitions", "num_pairs"), [(2, 24), pytest.param(20, 96, marks=pytest.mark.slow)])
def test_killed_at_random_and_two_workers_at_once_leave_what_one_clean_run_does(tmp_path, repetitions, num_pairs):
    shard_folder(tmp_path / "pairs", some_pairs(num_pairs), 6)
    result = subprocess.run(
        [sys.executable, "-c", KILLED_AND_RACED, str(tmp_path), str(repetitions), str(num_pairs)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout.split()[-1]) > 0


def test_labels_of_a_shard_are_of_one_type(tmp_path, trained):
    """The labels that our own teacher writes have the types that ShardLabels declares."""
    folder = shard_folder(tmp_path / "pairs", some_pairs(3))
    pseudo_label_run(trained, LabelRequest(folder, tmp_path / "out", CAPTION))
    labels = read_labels(tmp_path / "out" / "00000.safetensors")
    kinds = [getattr(labels, name).values.dtype for name in ("queries", "boxes", "scores", "box_texts")]
    assert kinds == [np.int64, np.float32, np.float32, np.int64]
    for row in range(3):
        height, width = labels.image_sizes[row]
        assert (labels.boxes[row] <= [width, height, width, height]).all()
        assert (np.diff(labels.scores[row]) <= 0).all()


def test_a_second_call_counts_images_as_the_first(tmp_path, captions_alone):
    """A second call counts images as the first; captions without a query do not count as unreadable images."""
    pairs = with_broken_images(some_pairs(12), [4])
    for row in (1, 2, 3):
        pairs[row] = Pair(pairs[row].key, pairs[row].image, "...", {})
    folder = shard_folder(tmp_path / "pairs", pairs, 12)
    counts = []
    for _ in range(2):
        report = DataReport(stops=False)
        label_shards(folder, tmp_path / "out", FixedTeacher(), captions_alone, CAPTION, report=report)
        counts.append((report.num_used(), report.counts()))
    assert counts[0] == counts[1] == (11, {("F9", "skipped"): 1})


def test_an_image_that_cannot_be_read_is_named_before_its_caption(tmp_path, captions_alone):
    pairs = with_broken_images(some_pairs(6), [0])
    pairs[0] = Pair(pairs[0].key, pairs[0].image, "", {})
    folder = shard_folder(tmp_path / "pairs", pairs, 6)
    label_shards(folder, tmp_path / "out", FixedTeacher(), captions_alone, CAPTION, report=DataReport(stops=False))
    assert str(read_labels(tmp_path / "out" / "00000.safetensors").reasons[0]).startswith("F9 ")


def test_a_report_may_be_in_use_already(tmp_path, captions_alone):
    report = DataReport()
    for number in range(2):
        folder = shard_folder(tmp_path / f"pairs{number}", some_pairs(6), 6)
        label_shards(folder, tmp_path / f"out{number}", FixedTeacher(), captions_alone, CAPTION, report=report)
    assert report.num_used() == 12
