"""The README is true: its commands run in order on miniatures of the data sets, and all that it names exists.

A command runs in this process, from a folder that looks like a checkout with data. `torchrun --nproc-per-node N`
becomes one rank, and training becomes a few steps of the tiny backbone at 64 px (`MINIATURE`). Commands that install or
download are only checked for their form (`FORM_ONLY`), as are the commands of the other pages and of the configs.
"""

import argparse
import ast
import importlib
import importlib.util
import json
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import real_layouts
from cores import THREADS
from kept_images import keep_images
from PIL import Image
from scripts import module_of

import ovd.build.world
import ovd.data.world.build
from ovd.__main__ import COMMANDS
from ovd.config.alignment import AlignConfig
from ovd.config.pretraining import PretrainConfig
from ovd.config.tables import AblationConfig
from ovd.config.training import TrainConfig
from ovd.config_files import _known_keys, load_config
from ovd.cost import MEASURED_UTILIZATION, count_cost
from ovd.data.pairs.write import write_pair_shards
from ovd.data.world.build import pair_scene
from ovd.data.world.settings import Settings

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
PAGES = sorted([README, ROOT / "CONTRIBUTING.md", ROOT / "data" / "README.md", *(ROOT / "docs").glob("*.md")])
SCRIPTS = [
    *sorted((ROOT / "tools").glob("*.py")),
    *(file for file in sorted((ROOT / "ovd" / "commands").glob("*.py")) if file.stem not in ("__init__", "arguments")),
]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
ALL_COMMANDS = {name for commands in COMMANDS.values() for name in commands}
LANGUAGES = {"sh", "python", "text", "bibtex"}

INSTALLS = "it installs packages"
FORM_ONLY = {
    "make install": INSTALLS,
    "source .venv/bin/activate": "there is no environment in the folder that the commands run in",
    "pip install -r requirements.txt": INSTALLS,
    "pip install --no-deps -r requirements-no-deps.txt -e .": INSTALLS,
    "make test": "it would run itself",
    "make test-all": "it would run itself",
    "make lint": "it checks the whole tree, which is not a test's job",
}
"""Commands of the README that are not run, each with the reason."""

SMALL = [
    "clip.name=tiny", "clip.weights=null", "bank.templates=none", "bank.num_synonyms=0", "detector.channels=32",
    "detector.num_convs=1", "data.size=64", "data.workers=0", "train.steps=2", "train.batch_size=2",
    "train.warmup_steps=1", "train.sampled_classes=10", f"train.threads={THREADS}", "eval.candidates=100",
]  # fmt: skip
MINIATURE = {
    "train": SMALL,
    "train.py": SMALL,
    "fine-tune": SMALL,
    "quickstart.py": SMALL,
    "text-bank": SMALL,
    "label-pairs": ["--threads", str(THREADS)],
}
"""Arguments appended to those of a tool, which make it run at miniature size."""

NUM_PAIRS = 12
TINY_WORLD = Settings(max_images_per_class=1, val_boxes_per_class=1, num_pairs=NUM_PAIRS, num_transfer_images=4)


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Yield language and content of every fenced block."""
    for indent, language, content in re.findall(r"^( *)```(\S*)\n(.*?)^\1```$", page.read_text(), re.DOTALL | re.M):
        yield language, re.sub(f"^{indent}", "", content, flags=re.M)


def commands_of(shell: str) -> list[str]:
    """Return logical lines without comments, with continued lines joined."""
    lines = shell.replace("\\\n", " ").splitlines()
    return [" ".join(shlex.split(line, comments=True, posix=False)) for line in lines if line.strip("# ")]


def readme_commands() -> list[str]:
    return [command for language, content in blocks(README) if language == "sh" for command in commands_of(content)]


def inline_code(page: Path) -> list[str]:
    text = re.sub(r"^( *)```.*?^\1```$", "", page.read_text(), flags=re.DOTALL | re.M)
    if page.suffix == ".yaml":
        text = re.sub(r"^# ?", "", text, flags=re.M)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]


@cache
def tool(name: str) -> ModuleType:
    """Import the module of a script of tools/ (`train.py`) or of a command of ovd (`train`)."""
    if not name.endswith(".py"):
        return importlib.import_module(f"ovd.commands.{name.replace('-', '_')}")
    return module_of(f"tools/{name}")


def make_recipe(target: str) -> list[str] | None:
    """Return the commands of a target of the Makefile, or None if there is no such target."""
    found = re.search(rf"^{target}:[^\n]*\n((?:\t[^\n]*\n)*)", (ROOT / "Makefile").read_text(), re.M)
    return None if found is None else [line.strip() for line in found[1].splitlines()]


def to_tool(command: str) -> tuple[str, list[str]] | None:
    """Return the tool or ovd's command, and its arguments; None for a command of another kind."""
    words = shlex.split(command)
    if words[0] == "make":
        assigned = dict(word.split("=", 1) for word in words[2:])
        first = next(iter(make_recipe(words[1]) or [""]), "")
        words = shlex.split(first.replace("$(PY)", "python").replace("$(ARGS)", assigned.get("ARGS", "")))
    if words and words[0] == "torchrun":
        script = next(i for i, word in enumerate(words) if word == "ovd" or word.endswith(".py"))
        words = words[script:] if words[script] == "ovd" else ["python", *words[script:]]
    if len(words) > 1 and words[0] == "ovd" and words[1] in ALL_COMMANDS:
        return words[1], words[2:]
    if len(words) > 1 and words[0] == "python" and (found := re.fullmatch(r"(?:\.\./)?tools/(\w+\.py)", words[1])):
        return found[1], words[2:]
    return None


def run(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    """Run a command of the README at miniature size."""
    named = to_tool(command)
    assert named is not None, f"no test covers the README's command {command!r}"
    name, arguments = named
    print(f"$ {command}")
    monkeypatch.setattr(sys, "argv", [f"tools/{name}", *arguments, *MINIATURE.get(name, [])])
    try:
        tool(name).main()
    except (Exception, SystemExit) as error:
        if not isinstance(error, SystemExit) or error.code:
            raise AssertionError(f"the README's command fails: {command}") from error


class _ParsedError(Exception):
    """Raised to end a tool once its arguments are parsed."""


def parse(monkeypatch: pytest.MonkeyPatch, name: str, arguments: list[str]) -> argparse.Namespace:
    """Parse the arguments with the tool's own parser; nothing else of the tool runs."""
    parsed = argparse.Namespace()

    def stopping(original: Callable[..., Any]) -> Callable[..., Any]:
        def parse_and_stop(parser: argparse.ArgumentParser) -> Any:
            found = original(parser, namespace=parsed)
            assert not (isinstance(found, tuple) and found[1]), f"unknown: {found}"
            raise _ParsedError

        return parse_and_stop

    with monkeypatch.context() as patched:
        for each in ("parse_args", "parse_known_intermixed_args"):
            patched.setattr(argparse.ArgumentParser, each, stopping(getattr(argparse.ArgumentParser, each)))
        patched.setattr(sys, "argv", [f"tools/{name}", *arguments])
        with pytest.raises(_ParsedError):
            tool(name).main()
    return parsed


def check_form(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    """Check that the files, targets, options and config keys of a command exist."""
    words = shlex.split(command)
    named = to_tool(command)
    if named is not None:
        check_config(named[0], parse(monkeypatch, *named))
    elif words[0] == "make":
        makefile = (ROOT / "Makefile").read_text()
        assert make_recipe(words[1]) is not None, f"the Makefile has no target {words[1]}"
        variables = [word.partition("=")[0] for word in words[2:]]
        assert all(re.search(rf"^{name} \?=|\$\({name}\)", makefile, re.M) for name in variables), command
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file(), words[1]
    elif words[0] == "sbatch":
        script = next(position for position, word in enumerate(words) if word.endswith(".sh"))
        assert (ROOT / words[script]).is_file(), words[script]
        if words[script + 1].endswith(".yaml"):
            load_config(ROOT / words[script + 1], words[script + 2 :], TrainConfig)
    elif words[0] == "pip":
        assert words[1] == "install"
        assert all((ROOT / file).is_file() for option, file in pairwise(words) if option == "-r"), command
    elif words[0] == "source":
        assert "VENV ?= .venv\n" in (ROOT / "Makefile").read_text()
        assert words[1] == ".venv/bin/activate"
    else:
        raise AssertionError(f"what is {command!r}? tests/test_readme.py does not know {words[0]}")


def check_config(name: str, arguments: argparse.Namespace) -> None:
    """Check that the config given to a tool exists and that its overrides are keys of it."""
    if "config" not in arguments:
        return
    path, overrides = ROOT / arguments.config, arguments.overrides
    match name:
        case "ablate.py":
            load_config(path, [], AblationConfig)
        case "align_backbone.py" | "align-backbone":
            load_config(path, overrides, AlignConfig)
        case "pretrain_clip.py":
            load_config(path, overrides, PretrainConfig)
        case _:
            load_config(path, overrides, TrainConfig)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory, miniature_world) -> Path:
    """A folder with the checkout's configs, and miniatures of all data sets at the places that the README names."""
    return make_checkout(tmp_path_factory, miniature_world, num_train=10, num_val=6)


@pytest.fixture(scope="module")
def checkout_of_guides(tmp_path_factory, miniature_world) -> Path:
    """A second such folder, since readers of the guides have not run the README's commands."""
    return make_checkout(tmp_path_factory, miniature_world, num_train=12, num_val=12)


def make_checkout(
    tmp_path_factory: pytest.TempPathFactory, miniature_world: Path, *, num_train: int, num_val: int
) -> Path:
    """Make a folder that looks like a checkout with miniatures; with fewer than ten training images, none could be held
    out for a calibration."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "configs").symlink_to(ROOT / "configs")
    data, world = folder / "data", tmp_path_factory.mktemp("small") / "world"
    own_world = data / "world" / TINY_WORLD.key()
    shutil.copytree(miniature_world, own_world)
    shutil.copytree(miniature_world, world)
    counts = {own_world / "annotations" / f"{name}.json": num_val for name in ("lvis_val", "hidden_val")}
    counts |= {world / "annotations" / "lvis_train.json": num_train, world / "annotations" / "lvis_val.json": num_val}
    for path, count in counts.items():
        content = json.loads(path.read_text())
        keep_images(content, range(1, count + 1))
        path.write_text(json.dumps(content))

    real_layouts.lvis(world, data)
    real_layouts.objects365(world, data)
    own_boxes(world, data / "mine")
    real_layouts.coco(world, data)
    write_pair_shards(data / "cc12m", (pair_scene(k, "pairs", TINY_WORLD) for k in range(NUM_PAIRS)), pairs_per_shard=6)
    truth = json.loads((data / "lvis" / "lvis_v1_val.json").read_text())
    rows = [{key: row[key] for key in ("image_id", "category_id", "bbox")} for row in truth["annotations"]]
    (folder / "results.json").write_text(json.dumps([{**row, "score": 0.5} for row in rows]))
    return folder


def own_boxes(world: Path, mine: Path) -> None:
    """Write the same scenes as COCO JSON, Pascal VOC and YOLO in one folder."""
    for part in ("train", "val"):
        content = json.loads((world / "annotations" / f"lvis_{part}.json").read_text())
        for image in content["images"]:
            image["file_name"] = f"{part}_{image['id']}.jpg"
            target = mine / "images" / image["file_name"]
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(world / "images" / "/".join(image.pop("coco_url").split("/")[-2:]), target)
        (mine / f"{part}.json").write_text(json.dumps(content))
    (mine / "words.txt").write_text("keyboard\nanchor\n")
    for layout in (real_layouts.voc(world, mine.parent), real_layouts.yolo(world, mine.parent)):
        root = layout.train_images.parent if layout.format == "voc" else layout.train_images
        shutil.copytree(root, mine, dirs_exist_ok=True)


@pytest.fixture
def few_scenes(monkeypatch) -> None:
    """Let the world have only a few scenes, drawn in this process."""
    for variable in ("OVD_DATA", "DETECTRON2_DATASETS", "OVD_START", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(variable, raising=False)
    given = {name: value for name, value in vars(TINY_WORLD).items() if name != "seed"}
    monkeypatch.setattr(ovd.build.world, "Settings", partial(Settings, **given))
    monkeypatch.setattr(
        ovd.data.world.build, "draw_in_parallel", lambda function, count, _: map(function, range(count))
    )


PROMISED = [
    "runs/quickstart/example.detections.jpg",
    "runs/quickstart/example.detections.json",
    "runs/quickstart/naming.json",
    "runs/quickstart/naming.png",
    "runs/quickstart/stages.json",
    "runs/lvis_base_rn50/eval/metrics.json",
    "runs/lvis_base_rn50/eval-objects365-zhiyuan_objv2_val/metrics.json",
    "runs/self_training_cc12m/metrics.json",
]


def run_page(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run all commands and Python code of a page in order, since later ones use the results of earlier ones."""
    names: dict[str, object] = {}
    for language, content in blocks(page):
        if language == "python":
            exec(compile(content, page.name, "exec"), names)
        elif language == "sh":
            for command in commands_of(content):
                check_form(monkeypatch, command)
                if command not in FORM_ONLY:
                    run(monkeypatch, command)


@pytest.mark.usefixtures("few_scenes")
def test_every_command_runs_from_top_to_bottom(monkeypatch, checkout):
    monkeypatch.chdir(checkout)
    run_page(README, monkeypatch)
    assert [path for path in PROMISED if not Path(path).is_file()] == []
    with Image.open("runs/quickstart/example.detections.jpg") as picture:
        picture.load()


GUIDES = ["first_detection.md", "own_boxes.md", "fine_tuning.md", "training.md", "lvis.md", "self_training.md"]


@pytest.mark.slow
@pytest.mark.usefixtures("few_scenes")
def test_every_command_of_the_guides_runs(monkeypatch, checkout_of_guides):
    """Every command of the guides runs, in the order of the site's navigation except for self-training, which starts
    from LVIS's run."""
    monkeypatch.chdir(checkout_of_guides)
    for guide in GUIDES:
        run_page(ROOT / "docs" / guide, monkeypatch)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("docker run ovd", "does not know docker"),
        ("python train.py", "^train.py"),
        ("pip install -r none.txt", "^pip install -r none.txt"),
        ("make none", "the Makefile has no target none"),
    ],
)
def test_a_command_that_no_test_covers_is_noticed(command, message, monkeypatch):
    with pytest.raises(AssertionError, match=message):
        check_form(monkeypatch, command)


def test_the_readme_has_no_command_beside_its_blocks():
    assert {language for language, _ in blocks(README)} == LANGUAGES
    outside = re.sub(r"^( *)```.*?^\1```$", "", README.read_text(), flags=re.DOTALL | re.M)
    assert "```" not in outside
    assert re.findall(r"^ {4}.*", outside, re.M) == [], "commands stand in blocks of ```sh, which the tests find"
    assert FORM_ONLY.keys() <= set(readme_commands()), "exceptions for commands that are gone"


def written_commands(page: Path) -> list[str]:
    """Return the commands in a page, in the comment of a config, or in the docstring of a tool, those in their prose
    included."""
    text = re.sub(r"\\\n[# ]*", " ", page.read_text())
    known = "|".join(sorted(ALL_COMMANDS))
    lines = re.findall(rf"^[# ]*((?:python|ovd (?:{known})|torchrun|sbatch|make|pip) .*)$", text, re.M)
    spans = [span for span in inline_code(page) if re.match(r"(python|torchrun|make|pip) \S", span)]
    return [command for line in [*lines, *spans] if "$" not in line for command in commands_of(line)]


@pytest.mark.parametrize("page", [*PAGES, *CONFIGS, *SCRIPTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_written_commands_have_files_options_and_keys_that_exist(page, monkeypatch):
    commands = written_commands(page)
    assert commands or page.suffix == ".md"
    for command in commands:
        check_form(monkeypatch, command)


TEXT = [page for page in PAGES if page.name not in ("log.md", "results.md")]


@pytest.mark.parametrize("page", TEXT, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_page_names_exists(page):
    text, spans = page.read_text(), inline_code(page)
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []

    files = [span for span in spans if re.fullmatch(r"[a-z_]+/([\w./-]+\.(py|md|yaml|sh)|[a-z_/]*/)", span)]
    made = ("runs/", "data/mine")
    missing = [file for file in files if not any((root / file).exists() for root in (ROOT, ROOT / "ovd"))]
    assert [file for file in missing if not file.startswith(made) and not re.search("[A-Z]{3}", file)] == []

    commands = [found[1] for span in spans if (found := re.match(r"ovd ([a-z]\S*)", span))]
    assert [name for name in commands if name not in ALL_COMMANDS] == []

    keys = set(_known_keys(TrainConfig))
    sections = "clip|bank|detector|data|train|eval"
    named = [match for span in spans if (match := re.fullmatch(rf"((?:{sections})\.[a-z_.]+)(=.*|: .*)?", span))]
    unknown = [match[1] for match in named if match[1].rstrip(".") not in keys and not match[1].endswith(".yaml")]
    assert unknown == []


def test_contributing_names_what_is_in_the_code():
    files = [file for folder in ("ovd", "tests", "tools") for file in (ROOT / folder).rglob("*.py")]
    code = "\n".join(file.read_text() for file in files if file != Path(__file__))
    spans = inline_code(ROOT / "CONTRIBUTING.md")
    names = [span for span in spans if re.fullmatch(r"test_\w+|\w*[A-Z]\w*", span)]
    assert len(names) > 20
    assert [name for name in names if name != "FORM_ONLY" and not re.search(rf"\b{name}\b", code)] == []


WRAPPED = [
    *(page for page in PAGES if page.name not in ("results.md", "benchmarks.md")),
    *CONFIGS,
    ROOT / "docs" / "slurm.sh",
]


@pytest.mark.parametrize("page", WRAPPED, ids=lambda path: str(path.relative_to(ROOT)))
def test_lines_are_short(page):
    lines = page.read_text().splitlines()
    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []


def test_the_architecture_page_has_every_tool():
    _, listed = next(block for block in blocks(ARCHITECTURE) if block[1].startswith("ablate.py"))
    assert {line.split()[0] for line in listed.splitlines()} == {path.name for path in (ROOT / "tools").glob("*.py")}


@pytest.mark.parametrize("ladder", [0, 1], ids=["ovd", "ovd.data"])
def test_the_architecture_page_has_the_ladders_that_are_checked(ladder):
    layers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][ladder]["layers"]
    _, shown = next(block for block in blocks(ARCHITECTURE) if block[1].startswith(layers[0]))
    assert [re.split(r" {3,}", line)[0] for line in shown.splitlines()] == layers


def test_the_readme_has_every_extra():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = README.read_text().partition("`pip install 'ovd[NAME]'` adds: ")[2].partition("\n\n")[0]
    assert extras.keys() <= set(re.findall(r"`(\w+)`", named))


def test_every_module_says_in_its_first_line_what_it_is():
    for path in [*(ROOT / "ovd").rglob("*.py"), *(ROOT / "tools").glob("*.py")]:
        assert ast.get_docstring(ast.parse(path.read_text())), path


def test_the_quick_starts_stages_go_together_wherever_they_are():
    stages = tool("quickstart.py").configs_of_stages
    base, config = stages([])
    assert (base.output, config.output) == (Path("runs/quickstart_base"), Path("runs/quickstart"))
    for overrides in ([], ["output=elsewhere/mine"]):
        base, config = stages(overrides)
        assert base.output == config.init_from == config.output.with_name(f"{config.output.name}_base")
        assert config.data.pairs.labels == base.output / "labels"


def test_the_quick_starts_stages_add_up_also_when_one_fails(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    stages = tool("quickstart.py").StageTimes()
    stages.add("installation", 61.0)
    for _ in range(2):
        with stages.measure("training"):
            now[0] += 3600.0

    def fail() -> None:
        with stages.measure("evaluation"):
            now[0] += 2.0
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [line.split() for line in stages.table().splitlines()] == [
        ["installation", "0:01:01"],
        ["training", "2:00:00"],
        ["evaluation", "0:00:02"],
        ["total", "2:01:03"],
    ]
    assert tool("quickstart.py").StageTimes().table().split() == ["total", "0:00:00"]


def test_the_layout_in_the_readme_exists():
    _, layout = next(block for block in blocks(README) if block[1].startswith("configs/"))
    for line in layout.splitlines():
        folder = ROOT / "ovd" if line.startswith("  ") else ROOT
        names = re.findall(r"(?:^| )([a-z0-9_]+(?:/|\.py))(?= |$)", line.strip()[:60].split("  ")[0])
        assert names, line
        assert [name for name in names if not (folder / name).exists()] == []


def test_the_reading_order_is_as_short_as_it_says():
    section = ARCHITECTURE.read_text().partition("## Reading order")[2].partition("The types that they pass on")[0]
    files = re.findall(r"`(ovd/[\w/]+\.py)`", section)
    assert len(files) == 7
    lines = sum((ROOT / file).read_text().count("\n") for file in files)
    assert lines < 1200
    assert f"in about {round(lines, -2):,} lines" in section


def backbone_table() -> dict[str, list[str]]:
    rows = [line.strip("|").split("|") for line in README.read_text().splitlines() if line.startswith("| `")]
    return {row[0].strip(" `"): [cell.strip() for cell in row[4:]] for row in rows if len(row) == 7}


def test_the_table_of_backbones_has_the_figures_of_the_configs():
    table = backbone_table()
    with_figures = {path.stem for path in CONFIGS if "GFLOP per image in training" in path.read_text()}
    assert with_figures < table.keys()
    for name in with_figures:
        comment = " ".join((ROOT / "configs" / f"{name}.yaml").read_text().replace("\n#", " ").split())
        figures = re.search(r"([\d,]+) GFLOP per image in training, (\d+) GiB(?: per GPU, ([\d.]+) h)?", comment)
        assert figures is not None, name
        assert table[name] == [figures[1], figures[2], figures[3] or "< 0.1"], name


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name == "lvis_base_nfnet_f6" else [])
        for name in backbone_table()
        if name != "quickstart"
    ],
)
def test_the_predicted_figures_are_those_of_the_tool(name):
    config = load_config(ROOT / "configs" / f"{name}.yaml", [], TrainConfig)
    cost = count_cost(config, config.data.size, config.data.size)
    num_gpus = {"lvis_base_nfnet_f6": 16, "custom_coco_rn50": 1}.get(name, 8)
    images = config.train.batch_size
    memory = cost.training_bytes(-(-images // num_gpus // config.train.accumulate)) / 2**30
    hours = cost.training_hours(
        steps=config.train.steps, images=images, peak_tflops=num_gpus * 989.0, utilization=MEASURED_UTILIZATION
    )
    flops, stated_memory, stated_hours = backbone_table()[name]
    assert flops == f"{cost.training_flops / 1e9:,.0f}"
    assert abs(memory - float(stated_memory)) < 0.6
    assert stated_hours == (f"{hours:.1f}" if hours > 0.05 else "< 0.1")
