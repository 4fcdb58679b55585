"""Reading, writing and evaluation of results files."""

import gzip
import json
import math
import os
import signal
import subprocess
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovd.evaluation import results_file
from ovd.evaluation.results import Results
from ovd.evaluation.results_file import load_results, write_results
from ovd.evaluation.run import evaluate_results_file
from ovd.format_count import format_count

GOOD = {"image_id": 1, "category_id": 2, "bbox": [1, 2.5, 3, 4], "score": 0.5}


def random_results(num: int, seed: int = 0) -> Results:
    rng = np.random.default_rng(seed)
    return Results(
        image_ids=rng.integers(1, 4, num),
        category_ids=rng.integers(1, 6, num),
        boxes_xywh=rng.uniform(0, 100, (num, 4)),
        scores=rng.random(num),
    )


def assert_same(one: Results, other: Results) -> None:
    for name in ("image_ids", "category_ids", "boxes_xywh", "scores"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("num", [0, 1, 10_001])
def test_written_results_read_back_bit_for_bit(num, tmp_path):
    results = random_results(num)
    write_results(tmp_path / "results.json", results)
    assert_same(load_results(tmp_path / "results.json"), results)
    assert len(json.loads((tmp_path / "results.json").read_text())) == num
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "results.json"
    write_results(path, random_results(3))
    before = path.read_bytes()
    broken = random_results(20_000, seed=1)
    broken.scores[15_000] = np.nan
    with pytest.raises(ValueError, match="JSON compliant"):
        write_results(path, broken)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", "invalid JSON"),
        ("{}", "a results file must be a list of records; this one is a dict"),
        (
            json.dumps({"images": [], "annotations": [GOOD]}),
            "a results file must be a list of records; .* COCO document",
        ),
        (f"{json.dumps(GOOD)}\n{json.dumps(GOOD)}\n", "invalid JSON: .*the file has a record in each line"),
        ("[3]", "record 0: is a int"),
        (json.dumps([GOOD, {"image_id": 1, "bbox": [1, 2, 3, 4]}]), "record 1: has no category_id, score"),
        (json.dumps([GOOD, GOOD | {"image_id": "one"}]), "record 1: image_id 'one' is not an integer"),
        (json.dumps([GOOD, GOOD | {"category_id": 2.5}]), r"record 1: category_id 2\.5 is not an integer"),
        (json.dumps([GOOD | {"bbox": [1, 2, 3]}]), "record 0: bbox"),
        (json.dumps([GOOD | {"bbox": [1, 2, 3, None]}]), "record 0: bbox"),
        (json.dumps([GOOD | {"score": "0.9"}]), r"record 0: score '0\.9' is not a number"),
        (json.dumps([GOOD | {"score": True}]), "record 0: score True is not a number"),
        (json.dumps([GOOD | {"image_id": 10**30}]), "record 0: a number has too many digits: .*1000"),
    ],
)
def test_malformed_files_are_named(content, message, tmp_path):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(ValueError, match=rf"results\.json: {message}"):
        load_results(tmp_path / "results.json")


def test_ids_as_annotation_files_may_have_them_are_read(tmp_path):
    records = [GOOD, GOOD | {"image_id": f"{GOOD['image_id']}", "category_id": float(f"{GOOD['category_id']}")}]
    (tmp_path / "results.json").write_text(json.dumps(records))
    results = load_results(tmp_path / "results.json")
    assert results.image_ids.tolist() == [GOOD["image_id"]] * 2
    assert results.category_ids.tolist() == [GOOD["category_id"]] * 2


def test_a_compressed_file_is_named(tmp_path):
    (tmp_path / "results.json.gz").write_bytes(gzip.compress(json.dumps([GOOD]).encode()))
    with pytest.raises(ValueError, match=r"results\.json\.gz: the file is compressed with gzip; unpack it first"):
        load_results(tmp_path / "results.json.gz")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.json: the results file cannot be read \(No such file"):
        load_results(tmp_path / "none.json")
    with pytest.raises(ValueError, match=r"the results file cannot be read \(Is a directory"):
        load_results(tmp_path)


def test_nan_which_is_not_json_is_read_as_python_writes_it(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps([GOOD, GOOD | {"score": math.nan, "bbox": [0, 1e400, 2, 3]}]))
    results = load_results(tmp_path / "results.json")
    np.testing.assert_array_equal(results.scores, [0.5, math.nan])
    assert results.boxes_xywh[1].tolist() == [0, math.inf, 2, 3]


def test_a_results_file_is_evaluated_without_torch():
    """A results file is evaluated without torch and other packages whose import takes longer than evaluating half a
    million detections."""
    slow = {"torch", "matplotlib", "open_clip", "pydantic", "jaxtyping", "pycocotools", "tqdm"}
    script = f"import sys, ovd.commands.eval; print(sorted({slow} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_unread_keys_do_no_harm(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps([GOOD | {"segmentation": "x", "id": 7}]))
    results = load_results(tmp_path / "results.json")
    assert (results.image_ids[0], results.category_ids[0], results.scores[0]) == (1, 2, 0.5)
    assert results.boxes_xywh.tolist() == [[1, 2.5, 3, 4]]


TEXTS = st.text(st.sampled_from('}, {[]":\\\n'), max_size=8)
MORE = st.dictionaries(TEXTS, TEXTS | st.lists(st.dictionaries(TEXTS, TEXTS, max_size=2), max_size=3), max_size=3)


@given(more=st.lists(MORE, max_size=8), indent=st.sampled_from([None, 0, 2]), removed=st.integers(0, 400))
def test_files_in_pieces_are_read_or_refused_as_in_one(more, indent, removed, tmp_path_factory):
    """Files read in pieces give the same result or error as in one, whatever is between the four keys of a record and
    wherever a character is missing."""
    records = [keys | GOOD | {"image_id": number, "z": keys} for number, keys in enumerate(more)]
    content = json.dumps(records, indent=indent)
    path = tmp_path_factory.mktemp("pieces") / "results.json"
    for text in (content, content[:removed] + content[removed + 1 :], content.replace("}]", "},]")):
        path.write_text(text)
        outcomes = []
        for size in (1, 10**9):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(results_file, "_PIECE_BYTES", size)
                try:
                    outcomes.append(load_results(path).image_ids.tolist())
                except ValueError as error:
                    outcomes.append(str(error))
        assert outcomes[0] == outcomes[1]


def test_the_end_of_a_piece_that_is_none_of_a_record_does_no_harm(tmp_path, monkeypatch):
    monkeypatch.setattr(results_file, "_PIECE_BYTES", 1)
    records = [GOOD | {"note": "}, {", "parts": [{"a": 1}, {"b": 2}], "image_id": number} for number in range(3)]
    (tmp_path / "results.json").write_text(json.dumps(records))
    assert load_results(tmp_path / "results.json").image_ids.tolist() == [0, 1, 2]


@pytest.fixture
def divided(monkeypatch) -> None:
    """Let four processes read files of only a few records."""
    monkeypatch.setattr(results_file, "_PROCESS_BYTES", 100)
    monkeypatch.setattr(results_file, "num_cores", lambda: 4)


@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_several_processes_read_what_one_does(start, divided, tmp_path, monkeypatch):
    results = random_results(500)
    path = tmp_path / "results.json"
    write_results(path, results)
    path.write_text(start + path.read_text())
    assert len(results_file._divide(path, path.stat().st_size, 4)) == 4
    monkeypatch.setattr(results_file, "_load_whole", None)
    assert_same(load_results(path), results)


@given(records=st.integers(1, 12), num_parts=st.integers(1, 20), indent=st.sampled_from([None, 0, 2]))
def test_parts_of_a_file_hold_each_record_once(records, num_parts, indent, tmp_path_factory):
    path = tmp_path_factory.mktemp("parts") / "results.json"
    path.write_text(json.dumps([GOOD | {"image_id": number} for number in range(records)], indent=indent))
    parts = results_file._divide(path, path.stat().st_size, num_parts)
    assert 1 <= len(parts) <= num_parts
    read = [results_file._load_part(path, part).image_ids.tolist() for part in parts]
    assert [*chain.from_iterable(read)] == list(range(records))
    assert all(read)


def test_a_bad_record_of_another_process_is_named(divided, tmp_path):
    records = [GOOD] * 99 + [GOOD | {"score": "0.9"}]
    (tmp_path / "results.json").write_text(json.dumps(records))
    with pytest.raises(ValueError, match=r"results\.json: record 99: score '0\.9' is not a number"):
        load_results(tmp_path / "results.json")


def test_a_killed_process_is_an_error_that_names_the_file(divided, tmp_path, monkeypatch):
    write_results(tmp_path / "results.json", random_results(50))
    own, parse = os.getpid(), results_file._parse

    def parse_or_die(*arguments):
        if os.getpid() != own:
            os.kill(os.getpid(), signal.SIGKILL)
        return parse(*arguments)

    monkeypatch.setattr(results_file, "_parse", parse_or_die)
    with pytest.raises(RuntimeError, match=r"results\.json: a process that read a part of the file was killed"):
        load_results(tmp_path / "results.json")


_KILLED_WHILE_READING = """
import os, signal, sys
from pathlib import Path
from ovd.evaluation import results_file
results_file._PROCESS_BYTES, results_file.num_cores = 100, lambda: 4
with results_file.results_loader(Path(sys.argv[1])):
    os.kill(os.getpid(), getattr(signal, sys.argv[2]))
"""


@pytest.mark.parametrize("signal_name", ["SIGTERM", "SIGKILL"])
def test_the_other_processes_end_if_their_parent_is_killed(signal_name, tmp_path):
    write_results(tmp_path / "results.json", random_results(50))
    arguments = [sys.executable, "-c", _KILLED_WHILE_READING, str(tmp_path / "results.json"), signal_name]
    # Standard output is at its end once every process that has it open has ended.
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, start_new_session=True) as parent:
        try:
            parent.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            os.killpg(parent.pid, signal.SIGKILL)
            raise
    assert parent.returncode == -getattr(signal, signal_name)


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    path = tmp_path / "annotations.json"
    image = {"id": 1, "neg_category_ids": [], "not_exhaustive_category_ids": []}
    box = {"id": 1, "image_id": 1, "category_id": 2, "bbox": [1, 2.5, 3, 4], "area": 12}
    category = {"id": 2, "name": "cup", "frequency": "r"}
    path.write_text(json.dumps({"images": [image], "annotations": [box], "categories": [category]}))
    return path


@pytest.mark.parametrize("engine", ["hotcoco", "official"])
@pytest.mark.parametrize(
    ("file_format", "records", "expected"),
    [
        ("lvis", [GOOD], {"AP": 1, "APr": 1, "APf": -1, "APr_fixed": 1, "AR@300": 1}),
        ("lvis", [], {"AP": 0, "APr": 0, "AP_fixed": 0, "APr_fixed": 0, "AR@300": 0}),
        ("coco", [GOOD], {"AP": 1, "APs": 1, "AR1": 1}),
        ("coco", [], {"AP": 0, "APs": 0, "AR1": 0}),
    ],
)
def test_a_file_is_evaluated_and_reported(engine, file_format, records, expected, annotations, tmp_path, capsys):
    (tmp_path / "results.json").write_text(json.dumps(records))

    metrics = evaluate_results_file(annotations, tmp_path / "results.json", file_format, engine, tmp_path / "report")

    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert {path.name for path in (tmp_path / "report").iterdir()} == {
        "metrics.json",
        "metrics.txt",
        "per_class.csv",
        "precision_recall.png",
        "decisions.json",
        "reliability.png",
    }
    printed = capsys.readouterr().out
    assert printed.startswith(f"{file_format.upper()} box AP, ")
    assert f"{format_count(len(records), 'detection')} in {len(records)} of 1 image" in printed


def test_a_folder_that_cannot_be_made_is_told_before_the_computation(annotations, tmp_path, capsys):
    (tmp_path / "results.json").write_text(json.dumps([GOOD]))
    output = tmp_path / "results.json" / "report"
    with pytest.raises(ValueError, match=r"report cannot be created .*; give another --output"):
        evaluate_results_file(annotations, tmp_path / "results.json", "coco", output_dir=output)
    assert not capsys.readouterr().out


def test_files_of_an_earlier_evaluation_do_not_stay_beside_those_of_another(annotations, tmp_path):
    (tmp_path / "results.json").write_text("[]")
    (tmp_path / "report").mkdir()
    for name in ("naming.json", "naming.png", "report.html", "notes.txt"):
        (tmp_path / "report" / name).touch()
    evaluate_results_file(annotations, tmp_path / "results.json", "coco", output_dir=tmp_path / "report")
    left = {path.name for path in (tmp_path / "report").iterdir()}
    assert "metrics.json" in left
    assert left & {"naming.json", "naming.png", "report.html", "notes.txt"} == {"notes.txt"}


def empty_files(tmp_path: Path, **annotations: list) -> tuple[Path, Path]:
    """Write an annotation file without images, unless `annotations` has some, and an empty results file."""
    (tmp_path / "empty.json").write_text(json.dumps({"images": [], "annotations": [], "categories": [], **annotations}))
    (tmp_path / "results.json").write_text("[]")
    return tmp_path / "empty.json", tmp_path / "results.json"


@pytest.mark.parametrize("file_format", ["lvis", "coco"])
def test_annotations_without_categories_are_refused_by_name(file_format, tmp_path):
    with pytest.raises(ValueError, match=r"empty\.json has no categories"):
        evaluate_results_file(*empty_files(tmp_path), file_format)


def test_both_engines_take_annotations_without_images(tmp_path):
    files = empty_files(tmp_path, categories=[{"id": 2, "name": "cup"}])
    one, other = (evaluate_results_file(*files, "coco", engine) for engine in ("hotcoco", "official"))
    assert one == other
    assert set(one.values()) == {-1}


@pytest.mark.parametrize("engine", ["hotcoco", "official"])
@pytest.mark.parametrize("file_format", ["lvis", "coco"])
@pytest.mark.parametrize(
    ("record", "message"),
    [
        (GOOD | {"score": float("nan")}, "the score is not finite"),
        (GOOD | {"score": float("inf")}, "the score is not finite"),
        (GOOD | {"bbox": [0, 0, 1e12, 9]}, "larger than any image"),
        (GOOD | {"image_id": 5}, "unknown image_id"),
        (GOOD | {"category_id": 5}, "unknown category_id"),
    ],
)
def test_a_bad_record_stops_the_evaluation(engine, file_format, record, message, annotations, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps([GOOD, record]))
    with pytest.raises(ValueError, match=rf"results\.json: record 1 .*{message}"):
        evaluate_results_file(annotations, tmp_path / "results.json", file_format, engine, tmp_path / "report")
    assert not (tmp_path / "report").exists()
