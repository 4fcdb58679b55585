"""The quality of pseudo-labels: shares of right boxes and names, in hand-made cases and against a loop over pairs."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from ragged_rows import ragged
from scripts import run_tool
from torchvision.ops import box_iou

from ovd.data.pairs.pair import Pair
from ovd.data.pairs.tar import PairShards
from ovd.data.pairs.write import write_pair_shards
from ovd.selftrain.labels import ShardLabels, write_labels
from ovd.selftrain.ledger import LabelCounts, Ledger
from ovd.selftrain.quality import QualityRow, TrueObjects, format_quality, measure_quality, read_true_objects

NAMES = ("umbrella", "coffee cup", "cat", "filled star")
SYNONYMS = {"coffee_cup": ("coffee_cup", "cup_of_coffee"), "umbrella": ("parasol",)}
BOX, ELSEWHERE = [10, 10, 50, 50], [100, 100, 140, 140]


def shard_of(
    texts: tuple[str, ...], pairs: list[list[tuple[int, float, list]]], queries: list[list[int]] | None = None
):
    return ShardLabels(
        keys=tuple(f"{row:06d}" for row in range(len(pairs))),
        reasons=(None,) * len(pairs),
        image_sizes=np.full((len(pairs), 2), 192, dtype=np.int64),
        texts=texts,
        queries=ragged(queries or [[*range(len(texts))]] * len(pairs), np.int64),
        boxes=ragged([[box for _, _, box in pair] for pair in pairs], np.float32, 4),
        scores=ragged([[score for _, score, _ in pair] for pair in pairs], np.float32),
        box_texts=ragged([[text for text, _, _ in pair] for pair in pairs], np.int64),
    )


def truth_of(pairs: list[list[tuple[str, list]] | None], captions: list[str] | None = None) -> TrueObjects:
    return TrueObjects(
        is_known=np.array([pair is not None for pair in pairs], dtype=bool),
        boxes=ragged([[box for _, box in pair or ()] for pair in pairs], np.float32, 4),
        names=tuple(name for pair in pairs for name, _ in pair or ()),
        captions=tuple(captions or ["some caption"] * len(pairs)),
    )


def test_a_case_worked_out_by_hand():
    labels = shard_of(
        ("Cups of coffee", "cat", "umbrella"),
        [
            [(0, 0.9, BOX), (1, 0.8, BOX), (0, 0.7, [10, 10, 50, 30]), (2, 0.2, [10, 10, 50, 29])],
            [(2, 0.6, ELSEWHERE)],
            [(2, 0.9, BOX)],  # a pair without known objects
            [],
        ],
    )
    truth = truth_of([[("coffee cup", BOX), ("umbrella", ELSEWHERE)], [("umbrella", BOX)], None, [("cat", BOX)]])
    rows = measure_quality(
        [labels], [truth], thresholds=[0.0, 0.65], keeps=["all", "top1"], synonyms=SYNONYMS, rare=["coffee_cup"]
    )
    assert rows == (
        QualityRow("all", 0.0, 5, 3 / 5, 2 / 5, 4, 1 / 4, 1 / 4, 1, 1.0, 1.0),
        QualityRow("all", 0.65, 3, 1.0, 2 / 3, 4, 1 / 4, 1 / 4, 1, 1.0, 1.0),
        QualityRow("top1", 0.0, 2, 1 / 2, 1 / 2, 4, 1 / 4, 1 / 4, 1, 1.0, 1.0),
        QualityRow("top1", 0.65, 1, 1.0, 1.0, 4, 1 / 4, 1 / 4, 1, 1.0, 1.0),
    )
    assert "| all | 0.65 | 3 | 100.0% | 66.7% | 4 | 25.0% | 25.0% | 1 | 100.0% | 100.0% |\n" in format_quality(rows)


def test_a_synonym_is_right_only_where_it_is_known_as_one():
    labels, truth = shard_of(("parasol",), [[(0, 0.5, BOX)]]), truth_of([[("umbrella", BOX)]])
    (without,) = measure_quality([labels], [truth], thresholds=[0.0], keeps=["all"])
    (with_synonyms,) = measure_quality([labels], [truth], thresholds=[0.0], keeps=["all"], synonyms=SYNONYMS)
    assert (without.precision_in_place, without.precision_in_name) == (1.0, 0.0)
    assert (with_synonyms.precision_in_name, with_synonyms.recall_in_name) == (1.0, 1.0)
    assert with_synonyms.rare_recall_in_place is None


def test_whole_captions_are_judged_by_place_alone():
    captions = ["A photo of an umbrella ", "", "umbrella"]
    labels = shard_of(
        ("A photo of an umbrella", "umbrella"),
        [[(0, 0.5, BOX)], [], [(1, 0.5, BOX)]],
        queries=[[0], [], [1]],
    )
    truth = truth_of([[("umbrella", BOX)], [], [("umbrella", BOX)]], captions)
    (row,) = measure_quality([labels], [truth], thresholds=[0.0], keeps=["top1"], whole_captions=True)
    assert (row.precision_in_place, row.recall_in_place) == (1.0, 1.0)
    assert row.precision_in_name is row.recall_in_name is row.rare_recall_in_name is None
    assert "| top1 | 0 | 2 | 100.0% | - | 2 | 100.0% | - | 0 | - | - |\n" in format_quality([row])


def test_a_caption_of_one_noun_is_a_name():
    """A caption of one noun counts as a name; only the ledger tells names from whole captions."""
    labels, truth = shard_of(("umbrella",), [[(0, 0.5, BOX)]]), truth_of([[("umbrella", BOX)]], ["umbrella"])
    (row,) = measure_quality([labels], [truth], thresholds=[0.0], keeps=["all"])
    assert (row.precision_in_name, row.recall_in_name) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("text", "name", "is_right"),
    [
        ("bow", "bow_(weapon)", True),
        ("bow (weapon)", "bow_(weapon)", True),
        ("bows", "bow_(weapon)", True),
        ("bow_(weapon)", "bow", True),
        ("bow_(decorative_ribbons)", "bow_(weapon)", False),
        ("weapon", "bow_(weapon)", False),
        ("gown", "dress_(robe)", True),
        ("gown_(surgical)", "dress_(robe)", True),
    ],
)
def test_a_sense_in_brackets_need_not_be_said(text, name, is_right):
    labels, truth = shard_of((text,), [[(0, 0.5, BOX)]]), truth_of([[(name, BOX)]])
    synonyms = {"dress_(robe)": ["gown"]}
    (row,) = measure_quality([labels], [truth], thresholds=[0.0], keeps=["all"], synonyms=synonyms)
    assert row.precision_in_name == float(is_right)


@pytest.mark.parametrize("shards", [0, 1])
def test_without_labels_there_are_no_shares(shards):
    labels, truth = [shard_of((), [[]] * 2)] * shards, [truth_of([[], None])] * shards
    for row in measure_quality(labels, truth, thresholds=[0.1]):
        assert (row.num_labels, row.num_objects) == (0, 0)
        assert row.precision_in_place is row.recall_in_place is None
    assert len(format_quality([]).splitlines()) == 2


def random_pairs(rng: np.random.Generator, num_pairs: int, num_labels: int):
    """Make pairs with labels around the true objects, some near, some far, under right and wrong names."""

    def near(box: np.ndarray) -> np.ndarray:
        return (box + rng.normal(0, 6, 4)).astype(np.float32)

    truth: list[list[tuple[str, list]] | None] = []
    labels: list[list[tuple[int, float, list]]] = []
    for _ in range(num_pairs):
        corners = rng.uniform(0, 120, (int(rng.integers(0, 6)), 2))
        boxes = np.concatenate([corners, corners + rng.uniform(20, 60, corners.shape)], axis=1).astype(np.float32)
        truth.append([(NAMES[rng.integers(len(NAMES))], box.tolist()) for box in boxes] if rng.random() < 0.9 else None)
        count = int(rng.integers(0, num_labels)) if len(boxes) else 0
        labels.append(
            [
                (int(rng.integers(len(NAMES))), float(rng.random()), near(boxes[rng.integers(len(boxes))]).tolist())
                for _ in range(count)
            ]
        )
    return shard_of(NAMES, labels), truth_of(truth)


def test_the_same_as_counting_pair_by_pair():
    rng = np.random.default_rng(0)
    shards, truth = zip(*(random_pairs(rng, 60, 12) for _ in range(3)), strict=True)
    threshold = 0.4
    num_labels = num_objects = 0
    right, named, found, found_named, rare_named = 0, 0, 0, 0, []
    for labels, objects in zip(shards, truth, strict=True):
        for pair in range(len(labels.keys)):
            if not objects.is_known[pair]:
                continue
            is_kept = labels.scores[pair] >= threshold
            names = np.array(objects.names[slice(*objects.boxes.offsets[pair : pair + 2])], dtype="U20")
            texts = np.array(NAMES)[labels.box_texts[pair][is_kept]]
            overlaps = (
                box_iou(torch.from_numpy(labels.boxes[pair][is_kept]), torch.from_numpy(objects.boxes[pair])).numpy()
                >= 0.5
            )
            says = overlaps & (texts[:, None] == names[None])
            num_labels += len(texts)
            num_objects += len(names)
            right += int(overlaps.any(axis=1).sum())
            named += int(says.any(axis=1).sum())
            found += int(overlaps.any(axis=0).sum())
            found_named += int(says.any(axis=0).sum())
            rare_named += says.any(axis=0)[names == "cat"].tolist()
    (row,) = measure_quality(shards, truth, thresholds=[threshold], keeps=["all"], rare=["cat"])
    assert 0 < named < right < num_labels
    assert (row.num_labels, row.num_objects, row.num_rare_objects) == (num_labels, num_objects, len(rare_named))
    assert row.precision_in_place == right / num_labels
    assert row.precision_in_name == named / num_labels
    assert row.recall_in_place == found / num_objects
    assert row.recall_in_name == found_named / num_objects
    assert row.rare_recall_in_name == sum(rare_named) / len(rare_named)


def some_pairs() -> list[Pair]:
    infos: list[dict] = [
        {"boxes": [BOX, ELSEWHERE], "names": ["umbrella", "cat"]},
        {"source": "elsewhere"},
        {"boxes": [], "names": []},
        {"boxes": [BOX], "names": ["cat"]},
    ]
    return [Pair(f"{row:06d}", b"", f"caption {row}", info) for row, info in enumerate(infos)]


def test_true_objects_come_from_the_pairs(tmp_path):
    write_pair_shards(tmp_path, some_pairs(), pairs_per_shard=3)
    objects = read_true_objects(PairShards(tmp_path), [3, 1, 0])
    assert objects.is_known.tolist() == [True, False, True]
    assert objects.names == ("cat", "umbrella", "cat")
    assert objects.boxes.values.tolist() == [BOX, BOX, ELSEWHERE]
    assert objects.boxes.offsets.tolist() == [0, 1, 1, 3]
    assert objects.captions == ("caption 3", "caption 1", "caption 0")
    assert read_true_objects(PairShards(tmp_path), []).boxes.values.shape == (0, 4)


@pytest.mark.parametrize(
    ("info", "problem"),
    [
        ({"boxes": [BOX], "names": []}, "give two lists of the same length"),
        ({"boxes": None, "names": None}, "give two lists of the same length"),
        ({"boxes": [[1, 2, 3]], "names": ["cat"]}, r"box 1 is \[1, 2, 3\]: give four finite numbers"),
        ({"boxes": [1, 2, 3, 4], "names": ["a", "b", "c", "d"]}, "box 1 is 1: give four finite numbers"),
        ({"boxes": [BOX, [1, 2, "x", 4]], "names": ["a", "b"]}, r"box 2 is \[1, 2, 'x', 4\]: give four finite"),
        ({"boxes": [[1, 2, None, 4]], "names": ["cat"]}, "give four finite numbers"),
        ({"boxes": [[1, 2, True, 4]], "names": ["cat"]}, "give four finite numbers"),
        ({"boxes": [[1, 2, 10**400, 4]], "names": ["cat"]}, "give pixels, each less than 1,000,000,000"),
        ({"boxes": [[1, 2, 1e300, 4]], "names": ["cat"]}, r"box 1 is \[1, 2, 1e\+300, 4\]: give pixels"),
        ({"boxes": [[1, 2, -1e9, 4]], "names": ["cat"]}, "each less than 1,000,000,000"),
        ({"boxes": [[50, 5, 20, 20]], "names": ["cat"]}, "give the left, top, right and bottom side"),
        ({"boxes": [[5, 50, 20, 20]], "names": ["cat"]}, "not width and height"),
        ({"boxes": [BOX], "names": [7]}, "7 is not a string; give names"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_true_objects_that_do_not_fit_together_are_named(tmp_path, info, problem):
    write_pair_shards(tmp_path, [Pair("a", b"", "", info)], pairs_per_shard=1)
    with pytest.raises(ValueError, match=rf"00000\.tar:a: its JSON has boxes .*; .*{problem}"):
        read_true_objects(PairShards(tmp_path), [0])


def test_the_tool_prints_a_table_and_writes_the_figures(tmp_path):
    write_pair_shards(tmp_path / "pairs", some_pairs(), pairs_per_shard=3)
    (tmp_path / "labels").mkdir()
    categories = [
        {"id": 1, "name": "umbrella", "synonyms": ["parasol"], "frequency": "r"},
        {"id": 2, "name": "cat", "synonyms": ["cat"], "frequency": "f"},
    ]
    content = {"images": [], "annotations": [], "categories": categories}
    (tmp_path / "lvis.json").write_text(json.dumps(content))
    arguments = [
        "tools/label_quality.py", tmp_path / "labels", "--pairs", tmp_path / "pairs", "--annotations",
        tmp_path / "lvis.json", "--thresholds", "0.1", "0.6", "--output", tmp_path / "quality.json",
    ]  # fmt: skip
    assert "has no labels" in run_tool(*arguments, expect=2).stderr

    labels = shard_of(("parasols", "cat"), [[(0, 0.5, BOX)], [(1, 0.7, BOX)], [(1, 0.3, BOX)]])
    file = tmp_path / "labels" / "00000.safetensors"
    sha256 = write_labels(
        file,
        labels,
        index=PairShards(tmp_path / "pairs").index("00000.tar"),
        variants=np.zeros((2, 1, 4), dtype=np.float16),
        text_tower="none",
        settings={},
    )
    shard = json.loads((tmp_path / "pairs" / "manifest.json").read_text())["shards"][0]
    counts = LabelCounts(3, 3, 0, 3, 2, 0, {})
    ledger = Ledger(shard["file"], shard["sha256"], sha256, {"text_tower": "none"}, counts, {})
    ledger.write(file)
    printed = run_tool(*arguments).stdout
    assert "| all | 0.1 | 2 | 50.0% | 50.0% | 2 | 50.0% | 50.0% | 1 | 100.0% | 100.0% |" in printed
    assert "2 pairs compared; 1 pair left out" in printed
    assert "more boxes" not in printed
    written = json.loads((tmp_path / "quality.json").read_text())
    assert (written["num_pairs"], written["num_pairs_left_out"], len(written["rows"])) == (2, 1, 8)
    assert written["rows"][0]["precision_in_name"] == 0.5

    settings = {"text_tower": "none", "queries": "caption"}
    replace(ledger, settings=settings, counts=replace(counts, capped_pairs=2)).write(file)
    printed = run_tool(*arguments).stdout
    assert "| all | 0.1 | 2 | 50.0% | - | 2 | 50.0% | - | 1 | 100.0% | - |" in printed
    assert "2 of 3 pairs had more boxes than are stored" in printed
