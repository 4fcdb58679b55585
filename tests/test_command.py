"""The `ovd` command: one subcommand per module of ovd/commands/, which the script in tools/ also runs."""

import json
import os
import re
import subprocess
import sys
from argparse import Namespace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from python_process import output_of

import ovd.__main__ as command
from ovd.__main__ import COMMANDS
from ovd.clip.load import TINY_CLIP
from ovd.data.report import DataReport
from ovd.experts.group import NO_EXPERTS
from ovd.jobs import detect_queries
from ovd.jobs.evaluate import prepare_output
from ovd.jobs.queries import Query, add_examples, parse_query, read_queries
from ovd.predictor import Predictor
from ovd.structures import Detections

ROOT = Path(__file__).parents[1]
NAMES = sorted(name for commands in COMMANDS.values() for name in commands)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["ovd", *arguments])
    command.main()


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    """Empty run folders in the current folder; their loading is tested elsewhere."""
    for name in ("run", "another_run", "runs/one", "runs/quickstart"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_module_is_a_command_and_every_command_a_module():
    files = {path.stem.replace("_", "-") for path in (ROOT / "ovd" / "commands").glob("*.py")}
    assert files - {"--init--", "arguments"} == set(NAMES)
    assert len(NAMES) == len(set(NAMES))


@pytest.mark.parametrize("name", NAMES)
def test_help_of_a_command_has_an_example(name, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, name, "--help")
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: ovd {name} ")
    assert f"    ovd {name} " in text


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_names_every_command(arguments, monkeypatch, capsys):
    run(monkeypatch, *arguments)
    listed = re.findall(r"^  ([a-z-]+)  +[a-z]", capsys.readouterr().out, re.M)
    assert sorted(listed) == NAMES


@pytest.mark.parametrize(
    ("arguments", "unbuffered"), [(["--help"], ""), (["--help"], "1"), (["--version"], ""), (["check", "--help"], "")]
)
def test_output_that_nobody_reads_ends_a_command_without_a_word(arguments, unbuffered):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "ovd", *arguments],
        stdout=write, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )  # fmt: skip
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_output_to_a_full_disk_is_an_error_in_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "ovd", "--help"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 3
    assert done.stderr.startswith("error: [Errno 28] No space left on device")
    assert done.stderr.count("\n") == 1


ENDS_WITH_GARBAGE = """
from ovd.cli import run_tool

class Cycle:
    def __init__(self):
        self.itself = self
    def __del__(self):
        print("collected")

run_tool(Cycle)
"""


def test_the_end_of_a_command_is_not_spent_on_garbage():
    """A command does not spend its end on garbage collection, which took more than a second with torch's millions of
    objects."""
    assert output_of("-c", ENDS_WITH_GARBAGE) == ""


def test_help_comes_without_heavy_imports():
    code = "import sys, ovd.__main__ as m; m.help_text(); print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_options_are_read_before_torch_is_imported():
    code = (
        "import sys; from importlib import import_module\n"
        "for name in sys.argv[1:]:\n"
        "    import_module(f'ovd.commands.{name}')\n"
        "    assert 'torch' not in sys.modules, f'{name} imports torch'\n"
        "print('done')"
    )
    modules = [name.replace("-", "_") for name in NAMES]
    done = subprocess.run([sys.executable, "-c", code, *modules], capture_output=True, text=True)
    assert done.stdout == "done\n", done.stderr


OF_A_CONFIG = {
    "train": "quickstart", "fine-tune": "fine_tuning", "text-bank": "quickstart", "align-backbone": "align_tiny",
    "cost": "quickstart",
}  # fmt: skip
READS_A_TYPO = """
import sys
from ovd.__main__ import main

for name, config in zip(sys.argv[1::2], sys.argv[2::2]):
    sys.argv = ["ovd", name, f"configs/{config}.yaml", "train.stepz=1"]
    try:
        main()
    except SystemExit as stopped:
        print(stopped.code, "torch" in sys.modules)
"""


OF_A_RUN = [
    "detect x.jpg --classes cup --run", "label x --classes cup --output y.json --run", "eval", "experts who", "export",
    "label-pairs", "serve",
]  # fmt: skip
READS_A_RUN = """
import sys
from ovd.__main__ import main

AFTER = {"experts": ["x", "--classes", "cup"], "export": ["x.onnx"], "label-pairs": ["--pairs", "x", "--output", "y"]}
for line in sys.argv[1:]:
    words = line.split()
    sys.argv = ["ovd", *words, "none-such", *AFTER.get(words[0], [])]
    try:
        main()
    except SystemExit as stopped:
        print(stopped.code, "torch" in sys.modules, file=sys.stderr)
"""


def test_a_run_that_is_not_there_is_named_before_torch_is_imported():
    done = subprocess.run([sys.executable, "-c", READS_A_RUN, *OF_A_RUN], capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    assert [line.partition(";")[0] for line in lines[::2]] == ["error: none-such does not exist"] * len(OF_A_RUN)
    assert lines[1::2] == ["2 False"] * len(OF_A_RUN)


def test_a_mistyped_setting_is_named_before_torch_is_imported():
    arguments = [word for pair in OF_A_CONFIG.items() for word in pair]
    assert output_of("-c", READS_A_TYPO, *arguments).split() == ["2", "False"] * len(OF_A_CONFIG)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("trian", "did you mean train?"), ("lable", "did you mean label?"), ("xyz", "ovd --help lists all")],
)
def test_a_command_that_is_not_there(name, meant, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, name)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert f"ovd has no command '{name}'" in error
    assert meant in error


def test_a_bad_input_is_one_line(monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, "train", "configs/none-such.yaml")
    assert stopped.value.code == 2
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "folder"),
    [
        ("", "eval"),
        ("--size 64", "eval-size-64"),
        ("--expert runs/mine", "eval-mine"),
        ("--expert runs/mine/expert --nearest", "eval-mine-nearest"),
        ("--expert runs/mine --expert runs/other --same-place both", "eval-mine-other-both"),
        ("--expert runs/mine --output runs/elsewhere", "../elsewhere"),
    ],
)
def test_evaluations_that_differ_go_into_different_folders(options, folder, runs, monkeypatch):
    monkeypatch.setattr("ovd.build.trained.load_detector", lambda *_, **__: SimpleNamespace(experts=NO_EXPERTS))
    outputs = []
    monkeypatch.setattr("ovd.jobs.evaluate.evaluate_run", lambda _, *, output, **__: outputs.append(output))
    run(monkeypatch, "eval", "runs/one", *options.split())
    assert outputs[0].resolve() == Path("runs/one", folder).resolve()


def test_an_evaluation_is_not_replaced_by_one_of_another_data_set(runs, monkeypatch, capsys):
    monkeypatch.setattr("ovd.build.trained.load_detector", lambda *_, **__: SimpleNamespace(experts=NO_EXPERTS))
    monkeypatch.setattr("ovd.build.data.load_evaluation_index", lambda *_, **__: None)
    outputs = []

    def evaluate_run(_, *, output: Path, **__) -> None:
        outputs.append(output)
        (output / "results.json").write_text("[]")

    monkeypatch.setattr("ovd.jobs.evaluate.evaluate_run", evaluate_run)

    def evaluate(folder: str, *options: str) -> None:
        data = ["--format", "coco", "--annotations", f"{folder}/annotations/val.json", "--images", "images"]
        run(monkeypatch, "eval", "run", *data, *options)

    evaluate("one")
    assert capsys.readouterr().out.startswith("results.json and their plots are in ")  # only what was written
    evaluate("one")
    with pytest.raises(SystemExit) as stopped:
        evaluate("other")
    assert stopped.value.code == 2
    assert "has an evaluation with different settings: annotations" in capsys.readouterr().err
    evaluate("other", "--output", "elsewhere")
    with pytest.raises(SystemExit):
        run(monkeypatch, "eval", "another_run", "--output", "elsewhere")
    assert "has an evaluation with different settings: annotations, format, images, run" in capsys.readouterr().err
    Path("submission").mkdir()
    Path("submission/results.json").write_text("[]")
    with pytest.raises(SystemExit):
        evaluate("one", "--output", "submission")
    assert "submission/results.json was not written by an evaluation of a run" in capsys.readouterr().err
    assert Path("submission/results.json").read_text() == "[]"
    Path("submission/results.json").rename("submission/metrics.json")  # as of `ovd eval --results`
    with pytest.raises(SystemExit):
        evaluate("one", "--output", "submission")
    assert "submission/metrics.json was not written by an evaluation of a run" in capsys.readouterr().err
    monkeypatch.chdir("/")  # another path to the same file
    run(monkeypatch, "eval", str(runs / "run"), "--format", "coco", "--images", str(runs / "images"),
        "--annotations", str(runs / "one/annotations/val.json"))  # fmt: skip
    same = "run/eval-annotations-val"
    assert [str(path) for path in outputs] == [same, same, "elsewhere", str(runs / same)]


class Called(BaseException):
    """Raised to end a command once its job is called."""


@pytest.mark.parametrize(
    ("words", "options", "job", "keyword", "without", "given"),
    [
        ("eval run", "--html", "ovd.jobs.evaluate.evaluate_run", "html", False, True),
        ("train CONFIG", "--strict-resume", "ovd.jobs.train.train_from_config", "strict_resume", False, True),
        ("train CONFIG", "--strict-resume", "ovd.jobs.train.train_from_config", "resume", False, True),
        ("train CONFIG --preflight", "--resume", "ovd.jobs.preflight.preflight", "resume", False, True),
        ("import-boxes coco --annotations a.json --output b.json", "--crowds-as-objects",
         "ovd.commands.import_boxes.import_into_file", "crowds_as_objects", False, True),
        ("detect photo.jpg --classes gear", "--prefilter 0.2", "ovd.predictor.Predictor", "prefilter", None, 0.2),
    ],
)  # fmt: skip
def test_an_option_reaches_the_job(words, options, job, keyword, without, given, runs, monkeypatch):
    Image.new("RGB", (8, 8)).save("photo.jpg")
    keywords = []

    def called(*_: object, **more: object) -> None:
        keywords.append(more)
        raise Called

    import_module(job.rpartition(".")[0])
    monkeypatch.setattr("ovd.build.trained.load_detector", lambda *_, **__: SimpleNamespace(experts=NO_EXPERTS))
    monkeypatch.setattr(job, called)
    command_line = words.replace("CONFIG", str(ROOT / "configs" / "quickstart_base.yaml"))
    for line in (command_line, f"{command_line} {options}"):
        with pytest.raises(Called):
            run(monkeypatch, *line.split())
    assert [of_call[keyword] for of_call in keywords] == [without, given]


@pytest.mark.parametrize(("is_fine", "code"), [(True, None), (False, 2)])
def test_a_preflight_trains_nothing_and_its_answer_is_the_exit_code(is_fine, code, monkeypatch):
    monkeypatch.setattr("ovd.jobs.preflight.preflight", lambda *_, **__: is_fine)
    monkeypatch.setattr("ovd.jobs.train.train_from_config", lambda *_, **__: pytest.fail("it trains"))
    stopped = None
    try:
        run(monkeypatch, "train", str(ROOT / "configs" / "quickstart_base.yaml"), "--preflight")
    except SystemExit as end:
        stopped = end.code
    assert stopped == code


def test_a_seed_draws_a_split_of_its_own(tmp_path, monkeypatch):
    images = [{"id": number, "file_name": f"{number}.jpg", "height": 9, "width": 9} for number in range(40)]
    (tmp_path / "all.json").write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    drawn = []
    for number, seed in enumerate(([], ["--seed", "0"], ["--seed", "1"])):
        parts = [str(tmp_path / f"{name}{number}.json") for name in ("first", "second")]
        run(monkeypatch, "split", str(tmp_path / "all.json"), "--first", parts[0], "--second", parts[1], *seed)
        drawn.append([image["id"] for image in json.loads(Path(parts[0]).read_text())["images"]])
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ("--size 100 --device cpu", "--size, --device"),
        ("--onnx none.onnx --expert none --nearest", "--expert, --nearest, --onnx"),
        ("--output results.json", "is a file"),
        ("--threads 0", "--threads"),
    ],
)
def test_options_that_an_evaluation_cannot_use_are_refused(options, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("results.json").write_text("[]")
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, "eval", "--results", "results.json", "--format", "coco", "--annotations", "a.json",
            *options.split())  # fmt: skip
    assert stopped.value.code == 2
    assert named in capsys.readouterr().err


def test_names_that_are_read_alike_are_asked_for_once(tmp_path, capsys):
    from ovd.commands.detect import requested_queries

    def asked(classes: str, *lines: str) -> list[Query]:
        (tmp_path / "words.txt").write_text("\n".join([*lines, "gear"]))
        return requested_queries(Namespace(classes=classes, classes_file=tmp_path / "words.txt", prompt=[]))

    assert asked("anchor, Anchor , hot_dog:0.3", "hot dog:0.3", "owl") == [
        Query("anchor"), Query("hot_dog", 0.3), Query("owl"), Query("gear")
    ]  # fmt: skip
    assert "2 names are given more than once" in capsys.readouterr().err
    with pytest.raises(ValueError, match="'anchor' and 'Anchor' are the same name with two minimum scores"):
        asked("anchor:0.3, Anchor")
    with pytest.raises(ValueError, match="'_' is blank to the text tower; write a class name"):
        asked("anchor, _:0.3")


def test_words_too_long_for_the_name_of_a_file_are_asked_for(tmp_path, monkeypatch, capsys):
    from ovd.commands.detect import requested_queries

    monkeypatch.chdir(tmp_path)
    Path("gear").touch()
    words = ("word " * 60).strip()
    asked = requested_queries(Namespace(classes=f"{words}, gear", classes_file=None, prompt=[]))
    assert asked == [Query(words), Query("gear")]
    assert capsys.readouterr().err == (
        "warning: --classes gear is taken as a class name; to read names from this file, use --classes-file gear\n"
    )


def test_files_of_several_records_are_not_split(tmp_path, monkeypatch, capsys):
    images = [{"id": number, "file_name": f"{number // 2}.jpg", "height": 9, "width": 9} for number in range(8)]
    (tmp_path / "all.json").write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, "split", str(tmp_path / "all.json"), "--first", str(tmp_path / "a.json"),
            "--second", str(tmp_path / "b.json"))  # fmt: skip
    assert stopped.value.code == 2
    assert "several image records for 4 files, the first 0.jpg" in capsys.readouterr().err
    assert not (tmp_path / "a.json").exists()
    unnamed = [{"id": number, "height": 9, "width": 9} for number in range(8)]
    content = {"images": unnamed, "annotations": [], "categories": []}
    (tmp_path / "unnamed.json").write_text(json.dumps(content))
    run(monkeypatch, "split", str(tmp_path / "unnamed.json"), "--first", str(tmp_path / "a.json"),
        "--second", str(tmp_path / "b.json"))  # fmt: skip
    assert len(json.loads((tmp_path / "a.json").read_text())["images"]) == 6


@pytest.mark.parametrize(
    "options", [["--gpus", "0"], ["--peak-tflops", "-3"], ["--utilization", "17"], ["--utilization", "0"]]
)
def test_a_cost_of_numbers_that_are_none_is_refused(options, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, "cost", str(ROOT / "configs" / "quickstart_base.yaml"), *options)
    assert stopped.value.code == 2
    assert options[0] in capsys.readouterr().err


def test_the_cost_of_a_clip_folder_is_that_of_its_model(monkeypatch, capsys):
    shown = []
    for overrides in ([], [f"clip.name={TINY_CLIP}"]):
        run(monkeypatch, "cost", str(ROOT / "configs" / "quickstart_base.yaml"), *overrides)
        shown.append(capsys.readouterr().out.splitlines()[1:])
    assert shown[0] == shown[1]
    assert " min for 300 steps of" in shown[0][-1]


def test_the_cost_of_a_config_for_a_cpu_has_no_gpus_and_no_time_that_nobody_knows(monkeypatch, capsys):
    asked = ["cost", str(ROOT / "configs" / "quickstart_base.yaml")]
    of_cpu = [*asked, "train.device=cpu", "train.batch_size=16", "train.accumulate=2"]
    run(monkeypatch, *of_cpu)
    *_, memory, time = capsys.readouterr().out.splitlines()
    assert memory.endswith(" GiB with 8 images at a time")
    found = re.search(r"not known: 300 steps of 16 images are ([\d.]+) TFLOP; .* --peak-tflops", time)
    assert found is not None
    run(monkeypatch, *of_cpu, "--peak-tflops", "0.5", "--utilization", "0.2")
    time = capsys.readouterr().out.splitlines()[-1]
    minutes = float(found[1]) / (0.5 * 0.2) / 60
    assert time.endswith(f" {minutes:.1f} min for 300 steps of 16 images on a CPU of 0.5 TFLOP/s at 20%")
    run(monkeypatch, *asked)
    time = capsys.readouterr().out.splitlines()[-1]
    assert time.endswith(" under 1 min for 300 steps of 8 images on 8 GPUs of 989 TFLOP/s at 17%")
    for options, words in (
        (["--gpus", "2"], "--gpus cannot be used"),
        (["--peak-tflops", "1"], "give both --peak-tflops and --utilization"),
    ):
        with pytest.raises(SystemExit):
            run(monkeypatch, *of_cpu, *options)
        assert words in capsys.readouterr().err


def test_an_interrupt_is_one_line(runs, monkeypatch, capsys):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ovd.build.trained.load_detector", interrupted)
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, "eval", "runs/one")
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


class FakePredictor(Predictor):
    """A predictor that finds the second name once for each score given for a picture."""

    threshold = 0.45
    is_calibrated = False

    def __init__(self, scores: list[list[float]], *, is_calibrated: bool):
        self._scores = iter(scores)
        self.is_calibrated = is_calibrated

    def __call__(self, *_: object, **__: object) -> Detections:
        of_picture = torch.tensor(next(self._scores))
        boxes = torch.tensor([[1.0, 2.0, 9.0, 9.0]]).repeat(len(of_picture), 1)
        return Detections(boxes, of_picture, torch.ones(len(of_picture), dtype=torch.int64))


def test_the_lowest_minimum_starts_a_track_and_what_is_written_is_counted(runs, monkeypatch, capsys):
    given, report = {}, DataReport(stops=False)
    report.count_used()
    report.count_used(3, unit="box")

    def detect_in_sources(*_: object, track_above: float) -> DataReport:
        given["track_above"] = track_above
        return report

    monkeypatch.setattr("ovd.build.trained.load_detector", lambda *_, **__: None)
    monkeypatch.setattr("ovd.predictor.Predictor", lambda *_, **__: FakePredictor([], is_calibrated=False))
    monkeypatch.setattr(detect_queries, "detect_in_sources", detect_in_sources)
    run(monkeypatch, "detect", "film.mp4", "--classes", "anchor:0.2, umbrella", "--track")
    assert given == {"track_above": 0.2}
    assert capsys.readouterr().out.startswith(
        "3 objects with a score of at least 0.45, or the minimum score after its name"
    )


@pytest.mark.parametrize(
    ("query", "name", "minimum"),
    [
        ("anchor:0.8", "anchor", 0.8),
        (" coffee cup : .25 ", "coffee cup", 0.25),
        ("anchor:1.0", "anchor", 1.0),
        ("a clock at 12:00", "a clock at 12:00", None),
        ("a 16:9 screen", "a 16:9 screen", None),
        ("ratio 16:9:0.4", "ratio 16:9", 0.4),
        ("ratio 3:1", "ratio 3:1", None),
    ],
)
def test_a_minimum_score_has_a_point(query, name, minimum):
    asked = parse_query(query)
    assert asked == Query(name, minimum)
    assert asked.threshold(0.45) == (0.45 if minimum is None else minimum)


@pytest.mark.parametrize("query", ["anchor:1.5", "anchor:-0.1", ":0.5"])
def test_a_minimum_score_is_from_0_to_1_and_has_a_name(query):
    with pytest.raises(ValueError, match=r"write it as NAME:0\.8"):
        parse_query(query)


def test_an_evaluation_whose_folder_cannot_be_written_to_says_what_to_give(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file/eval cannot be created \(Not a directory\); give another --output"):
        prepare_output(tmp_path / "file" / "eval", {})
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(ValueError, match="eval cannot be written to; give another --output"):
        prepare_output(tmp_path / "eval", {})
    assert not list((tmp_path / "eval").iterdir())


def test_an_evaluation_without_results_does_not_keep_its_folder_from_another(tmp_path):
    prepare_output(tmp_path, {"images": "mistyped"})
    prepare_output(tmp_path, {"images": "right"})
    for name in ("results.json", "metrics.json"):
        (tmp_path / name).touch()
        with pytest.raises(
            ValueError, match="has an evaluation with different settings: images; give another --output"
        ):
            prepare_output(tmp_path, {"images": "others"})
        prepare_output(tmp_path, {"images": "right"})
        (tmp_path / name).unlink()


def test_a_file_of_names_that_is_not_there_is_said_to_be_one(tmp_path):
    with pytest.raises(ValueError, match=r"words\.txt does not exist; give a text file with one class name per line"):
        read_queries(None, tmp_path / "words.txt")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--output=runs/x"], "--output=runs/x; write settings of the config as output=runs/x"),
        (["--output", "runs/x"], "--output runs/x; write settings of the config as output=runs/x"),
        (["--tf32", "--output"], "write settings of the config as tf32=VALUE output=VALUE"),
        (["-q"], "unrecognized arguments: -q\n"),
    ],
)
@pytest.mark.parametrize("name", ["train", "cost"])
def test_a_setting_that_is_written_as_an_option_is_named_as_it_is_given(name, options, words, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, name, "config.yaml", *options)
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("name", ["train", "fine-tune", "cost"])
def test_a_command_line_of_settings_alone_asks_for_a_config(name, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, name, "data=mine/data.yaml", "epochs=100")
    assert stopped.value.code == 2
    assert "data=mine/data.yaml is a setting; give a config file before it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--prompt", "gear=photo.png:10,10,90,5"],
            "photo.png: the box from (10, 10) to (100, 15) is empty",
        ),
        (["--prefilter", "7"], "argument --prefilter: '7' is not a number between 0 and 1"),
        (["--size", "7"], "size is 7; it must be the longest side in pixels"),
    ],
)
def test_what_can_be_seen_before_a_detector_is_loaded_is_said_before(options, words, runs, monkeypatch, capsys):
    Image.new("RGB", (40, 30)).save("photo.png")
    monkeypatch.setattr("ovd.build.trained.load_detector", lambda *_, **__: pytest.fail("it is loaded"))
    with pytest.raises((ValueError, SystemExit)) as stopped:
        run(monkeypatch, "detect", "photo.png", "--classes", "anchor", *options)
    assert words in f"{stopped.value}{capsys.readouterr().err}"


@pytest.mark.parametrize(
    ("classes", "limit"), [("anchor, umbrella", "--threshold"), ("anchor, umbrella:0.9", "the number after its name")]
)
def test_without_a_box_the_best_score_is_told(classes, limit, runs, monkeypatch, capsys, tmp_path):
    for name in ("one.png", "two.png"):
        Image.new("RGB", (40, 30)).save(tmp_path / name)
    predictor = FakePredictor([[0.31, 0.2], [0.44]], is_calibrated=True)
    monkeypatch.setattr("ovd.build.trained.load_detector", lambda *_, **__: None)
    monkeypatch.setattr("ovd.predictor.Predictor", lambda *_, **__: predictor)
    run(monkeypatch, "detect", str(tmp_path), "--classes", classes, "--output", str(tmp_path / "found"))
    told = capsys.readouterr().out
    assert told.startswith("0 objects with a probability of at least 0.45")
    assert told.endswith(
        f"; the best box scores 0.44, 'umbrella' in {tmp_path / 'two.png'} (lower {limit} to see it)\n"
    )


def test_the_installed_command_and_the_module_are_the_same():
    installed = Path(sys.executable).with_name("ovd")
    for words in ([str(installed)], [sys.executable, "-m", "ovd"]):
        done = subprocess.run([*words, "--version"], capture_output=True, text=True, check=True)
        assert re.fullmatch(r"ovd \d+\.\d+\.\d+\n", done.stdout)


SAME = re.compile(r"The same as\s`ovd ([a-z-]+)`")


def test_a_script_that_says_so_runs_the_command():
    scripts = {path.name: path.read_text() for path in (ROOT / "tools").glob("*.py")}
    same = {name: found[1] for name, text in scripts.items() if (found := SAME.search(text))}
    assert set(same.values()) <= set(NAMES)
    assert {"train.py", "eval.py", "demo.py"} <= set(same)
    for name, of in same.items():
        module = f"ovd.commands.{of.replace('-', '_')}"
        assert f"from {module} import main\n" in scripts[name]
        assert callable(import_module(module).main)


def test_names_of_files_that_are_not_utf8_are_printed(tmp_path):
    """File names that are not UTF-8 are printed in any locale, with their bytes spelled out."""
    code = (
        "import os; from ovd.cli import run_tool; run_tool(lambda: print(os.fsdecode(b'caf' + bytes([233]) + b'.jpg')))"
    )
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=True).stdout
    assert shown == b"caf\\udce9.jpg\n"


def test_an_example_belongs_to_the_name_that_is_read_like_its_own():
    words = ["anchor=crop.png", "Gadget=a.png", "gadget=b.png"]
    queries = add_examples([Query("Anchor", 0.5), Query("cat")], words)
    assert [query.name for query in queries] == ["Anchor", "cat", "Gadget"]
    asked = [query.prompt for query in queries]
    assert [item if isinstance(item, str) else (item.name, item.texts, len(item.images)) for item in asked] == [
        ("Anchor", ("Anchor",), 1), "cat", ("Gadget", (), 2)
    ]  # fmt: skip
    assert [query.min_score for query in queries] == [0.5, None, None]


def test_overrides_are_not_called_required(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["ovd train"])
    with pytest.raises(SystemExit):
        import_module("ovd.commands.train").main()
    assert capsys.readouterr().err.endswith("the following arguments are required: config\n")
