"""The ledger of a folder of pseudo-labels is read as written, and refused if it and the labels disagree."""

import json
from dataclasses import replace

import pytest
from test_labels import SETTINGS, some_labels, some_variants

from ovd.data.pairs.manifest import MANIFEST_NAME
from ovd.data.pairs.pair import Pair
from ovd.data.pairs.tar import PairShards
from ovd.data.pairs.write import write_pair_shards
from ovd.selftrain.labels import label_files, write_labels
from ovd.selftrain.ledger import (
    LabelCounts,
    Ledger,
    check_labels,
    describe_capped,
    labels_fingerprint,
    open_labeled_shards,
    read_ledger,
)

COUNTS = LabelCounts(pairs=3, pairs_with_boxes=2, capped_pairs=1, boxes=3, texts=5, long_texts=0, reasons={"F9": 1})
SOME = Ledger("a.b.tar", "1" * 64, "2" * 64, {"text_tower": "t", "max_boxes": 100}, COUNTS, {"F9": ["k: cut off"]})


def test_a_ledger_is_json_that_is_read_as_it_was(tmp_path):
    SOME.write(tmp_path / "a.b.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["a.b.json"]
    assert json.loads((tmp_path / "a.b.json").read_text()) == {
        "shard": {"file": "a.b.tar", "samples": 3, "sha256": "1" * 64},
        "settings": {"text_tower": "t", "max_boxes": 100},
        "labels": {"file": "a.b.safetensors", "sha256": "2" * 64},
        "counts": {
            "pairs": 3, "pairs_with_boxes": 2, "capped_pairs": 1, "boxes": 3, "texts": 5, "long_texts": 0,
            "reasons": {"F9": 1},
        },
        "left_out": {"F9": ["k: cut off"]},
    }  # fmt: skip
    assert read_ledger(tmp_path / "a.b.safetensors") == SOME
    assert SOME.text_tower == "t"


def test_ledgers_of_versions_that_did_not_name_what_they_left_out_are_read(tmp_path):
    file = tmp_path / "a.safetensors"
    SOME.write(file)
    content = json.loads(file.with_suffix(".json").read_text())
    del content["left_out"]
    file.with_suffix(".json").write_text(json.dumps(content))
    assert read_ledger(file) == replace(SOME, left_out={})


@pytest.mark.parametrize("part", ["shard", "settings", "labels", "counts"])
@pytest.mark.parametrize("instead", [None, {}, [1]])
def test_what_is_no_whole_ledger_is_named(tmp_path, part, instead):
    file = tmp_path / "a.safetensors"
    with pytest.raises(ValueError, match=r"a\.json is not a valid ledger .*No such file.*run ovd label-pairs again"):
        read_ledger(file)
    SOME.write(file)
    content = json.loads(file.with_suffix(".json").read_text())
    file.with_suffix(".json").write_text(json.dumps(content | {part: instead}))
    with pytest.raises(ValueError, match=r"a\.json is not a valid ledger of pseudo-labels .*run ovd label-pairs"):
        read_ledger(file)


def test_a_ledger_nested_too_deeply_is_named(tmp_path):
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"a\.json is not a valid ledger of pseudo-labels \(RecursionError"):
        read_ledger(tmp_path / "a.safetensors")


def test_capped_pairs_of_all_shards_are_told(tmp_path):
    files = [tmp_path / f"{number}.safetensors" for number in range(2)]
    for file, capped in zip(files, (1000, 2), strict=True):
        replace(SOME, counts=replace(COUNTS, pairs=2000, capped_pairs=capped)).write(file)
    assert describe_capped(files).startswith("1,002 of 4,000 pairs had more boxes than are stored ")
    replace(SOME, counts=replace(COUNTS, capped_pairs=0)).write(files[0])
    assert describe_capped(files[:1]) == ""


@pytest.fixture
def labeled(tmp_path):
    """Two shards of three pairs, the second of which has labels: the pairs and the two folders."""
    pairs = [Pair(f"{row}é", b"image %d" % row * (row + 1), f"caption {row}", {"row": row}) for row in range(6)]
    folder, file = tmp_path / "pairs", tmp_path / "labels" / "00001.safetensors"
    write_pair_shards(folder, pairs, pairs_per_shard=3)
    file.parent.mkdir()
    index = PairShards(folder).index("00001.tar")
    labels = replace(some_labels(3), keys=("3é", "4é", "5é"))
    sha256 = write_labels(file, labels, index=index, variants=some_variants(), text_tower="tower", settings=SETTINGS)
    entry = json.loads((folder / MANIFEST_NAME).read_text())["shards"][1]
    Ledger("00001.tar", entry["sha256"], sha256, {"text_tower": "tower"}, COUNTS, {}).write(file)
    return pairs, folder, file


def test_labeled_shards_are_opened_without_being_read(labeled, monkeypatch):
    pairs, folder, file = labeled

    def read(*arguments):
        raise AssertionError("a shard was read from end to end")

    monkeypatch.setattr("ovd.data.pairs.tar.index_shard", read)
    shards = open_labeled_shards(folder, [file])
    assert [shards[row] for row in range(len(shards))] == pairs[3:]
    assert shards.positions("00001.tar") == range(3)
    assert shards.location(1) == "00001.tar:4é"


def test_labels_without_a_ledger_or_of_another_shard_are_refused(labeled):
    _, folder, file = labeled
    shard, ledger = folder / "00001.tar", file.with_suffix(".json")
    whole = shard.read_bytes()
    shard.write_bytes(whole + bytes(512))
    with pytest.raises(ValueError, match=f"{len(whole) + 512} bytes, but had {len(whole)} when.*label it again"):
        open_labeled_shards(folder, [file])
    shard.write_bytes(whole)
    content = ledger.read_text()
    ledger.write_text(json.dumps({**json.loads(content), "shard": {"file": "00001.tar", "sha256": "0" * 64}}))
    with pytest.raises(ValueError, match=r"made from another version of 00001\.tar"):
        open_labeled_shards(folder, [file])
    (folder / MANIFEST_NAME).unlink()  # without a manifest, the shard cannot be checked
    assert len(open_labeled_shards(folder, [file])) == 3
    ledger.write_text(content)
    assert len(open_labeled_shards(folder, [file], text_tower="tower")) == 3
    with pytest.raises(ValueError, match=r"00001\.safetensors was made with a different text tower"):
        open_labeled_shards(folder, [file], text_tower="another")
    ledger.write_text(content[:-2])
    with pytest.raises(ValueError, match=r"00001\.json is not a valid ledger"):
        open_labeled_shards(folder, [file])


def test_labels_that_are_not_those_of_their_ledger_are_named(labeled):
    _, _, file = labeled
    check_labels([file])
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"00001\.safetensors does not match its ledger"):
        check_labels([file])


def test_labels_that_were_made_with_other_settings_than_the_rest_are_refused(labeled):
    _, folder, file = labeled
    other = file.with_name("00000.safetensors")
    labels = replace(some_labels(3), keys=("0é", "1é", "2é"))
    index = PairShards(folder).index("00000.tar")
    sha256 = write_labels(other, labels, index=index, variants=some_variants(), text_tower="tower", settings=SETTINGS)
    entry = json.loads((folder / MANIFEST_NAME).read_text())["shards"][0]
    prints = set()
    for threshold in (0.05, 0.3):
        ledger = read_ledger(file)
        replace(ledger, settings={**ledger.settings, "score_threshold": 0.05}).write(file)
        settings = {**ledger.settings, "score_threshold": threshold}
        Ledger("00000.tar", entry["sha256"], sha256, settings, COUNTS, {}).write(other)
        prints.add(labels_fingerprint(label_files(file.parent)))
        if threshold == 0.05:
            assert len(open_labeled_shards(folder, label_files(file.parent))) == 6
        else:
            with pytest.raises(ValueError, match=r"00001\.\w+ was made with different settings than .*score_threshold"):
                open_labeled_shards(folder, label_files(file.parent))
    assert len(prints) == 2
