"""Config files: bases, overrides, older keys, and a one-line error for every mistake."""

import re
import time
from itertools import takewhile
from pathlib import Path

import pytest
import yaml

from ovd.config.alignment import AlignConfig
from ovd.config.pretraining import PretrainConfig
from ovd.config.tables import AblationConfig, FineTuningTable
from ovd.config.training import GatedShortcutsConfig, NoShortcutsConfig, TrainConfig, WorldData
from ovd.config_files import KEYS_OF_OTHER_TRAINERS, RENAMED_KEYS, ConfigError, flatten, load_config
from ovd.section import Section

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


def write(tmp_path: Path, text: str, name: str = "config.yaml") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


MINIMAL = "output: runs/x\ntrain: {steps: 5}\n"


KINDS: dict[str, type[Section]] = {
    "align_rn50.yaml": AlignConfig,
    "align_tiny.yaml": AlignConfig,
    "pretrain_tiny_clip.yaml": PretrainConfig,
    "ablation.yaml": AblationConfig,
    "alignment.yaml": AblationConfig,
    "length.yaml": AblationConfig,
    "fine_tuning.yaml": FineTuningTable,
    "fine_tuning_few.yaml": FineTuningTable,
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_config_parses_and_opens_with_its_command(path):
    load_config(path, [], KINDS.get(path.name, TrainConfig))
    header = "".join(takewhile(lambda line: line.startswith("#"), path.read_text().splitlines(keepends=True)))
    assert re.search(rf"^#   (ovd|torchrun .* -m ovd|sbatch|python) .*configs/{path.name}", header, re.M)
    scripts = [CONFIGS[0].parents[1] / name for name in re.findall(r"tools/\w+\.py", path.read_text())]
    assert [script for script in scripts if "from ovd.commands." in script.read_text()] == [], "write `ovd COMMAND`"


def test_overrides_win_over_the_file_and_the_file_over_its_base(tmp_path):
    write(tmp_path, MINIMAL + "eval: {batch_size: 3, nms_iou: 0.5}\n", "base.yaml")
    path = write(tmp_path, "base: base.yaml\noutput: runs/y\neval: {batch_size: 4}\n")
    config = load_config(path, ["train.steps=7", "data.scale=[0.5, 2.0]"], TrainConfig)
    assert (config.output, config.train.steps, config.data.scale) == (Path("runs/y"), 7, (0.5, 2.0))
    assert (config.eval.batch_size, config.eval.nms_iou) == (4, 0.5)


def test_another_kind_replaces_the_base_section_instead_of_merging(tmp_path):
    write(tmp_path, MINIMAL + "detector: {shortcuts: {kind: gated, per_channel: false}}\n", "base.yaml")
    path = write(tmp_path, "base: base.yaml\ndetector: {shortcuts: {kind: none}}\n")
    assert isinstance(load_config(path, [], TrainConfig).detector.shortcuts, NoShortcutsConfig)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "output: x\ntrain: {steps: 5, larning_rate: 1}\n",
            "unknown key train.larning_rate; did you mean train.lear",
        ),
        ("output: x\ntrain: {steps: five}\n", "train.steps: Input should be a valid integer"),
        (
            "output: x\ntrain: {steps: 5, patience: 2}\n",
            "config.yaml: train.patience counts evaluations; set train.eval_every to the steps between them",
        ),
        ("output: x\ntrain: {steps: 5, learning_rate: .inf}\n", "train.learning_rate: Input should be a finite number"),
        ("output: x\ntrain: {steps: 5, seed: 99999999999999999999}\n", "train.seed: Input should be less than"),
        ("output: x\ntrain: {steps: 5}\nbank: {seed: 99999999999999999999}\n", "bank.seed: Input should be less than"),
        ("output: x\ntrain: {steps: 5}\ndata: {scale: [2, 0.5]}\n", "data.scale: write the smallest factor first"),
        (
            "output: x\ntrain: {steps: 5, batch_size: 1}\ndata: {pairs: {labels: y}}\n",
            "data.pairs needs train.batch_size=2",
        ),
        (
            "output: x\ntrain: {steps: 5}\ndata: {source: {kind: files, format: cooco}}\n",
            "data.source.format: Input should be",
        ),
        (
            "output: x\ntrain: {steps: 5}\ndata: {source: {val_split: val}}\n",
            "unknown key data.source.val_split with data.source.kind=world; set data.source.kind=files",
        ),
        ("output: x\ntrain: {steps: 0}\n", "train.steps: Input should be greater than 0"),
        ("output: x\n", "train: Field required"),
        ("output: x\ntrain: {steps: 5}\ndata: {flip: true}\n", "flip must be a number, not true"),
        ("output: x\ntrain: {steps: yes}\n", "steps must be a number, not true"),
        ("output: x\ntrain: {steps: 5}\ndata: {scale: [true, 2]}\n", "scale must be a number, not true"),
        ("output: x\ntrain: {steps: 5, patience: off}\n", "patience must be a number, not false"),
        ("output: x\ntrain: {steps: 5}\ndetector: {shortcuts: {kind: magic}}\n", "magic"),
        (
            "output: x\ntrain: {steps: 5, negatives: strict}\ndata: {mosaic: 0.5}\n",
            "cannot be combined with train.negatives",
        ),
        (
            "output: x\ntrain: {steps: 5}\ndata: {mosaic: 0.5, shape_groups: 2}\n",
            "cannot be combined with data.shape_groups",
        ),
        ("output: x\ntrain: {steps: 5, pair_negatives: true}\n", "train.pair_negatives needs data.pairs"),
        (
            "output: x\ntrain: {steps: 5, pair_negatives: true, negatives: strict}\ndata: {pairs: {labels: y}}\n",
            "but not train.negatives=strict",
        ),
        (
            "output: 2024-01-31\ntrain: {steps: 5}\n",
            "output: YAML reads this as 2024-01-31, not as text",
        ),
        (
            "output: x\ntrain: {steps: 5, wandb: 7}\n",
            "train.wandb: YAML reads this as 7, not as text; put it",
        ),
        ("output: x\ntrain: {steps: 5, wandb: [7]}\n", "train.wandb: Input should be a valid string (got [7])"),
        ("- 1\n- 2\n", "expected a mapping"),
        ("output: x\noutput: y\n", "the key 'output' occurs twice"),
        ("output: [x\n", "not plain YAML"),
        ("output: !!python/object/apply:os.system ['touch pwned']\n", "not plain YAML"),
        ("a: &a [1]\nb: [*a, *a]\n", "aliases"),
        ("base: 3\n", "must be the path of a config"),
        ("base: config.yaml\n", "circular"),
        ("base: missing.yaml\n", "cannot be read"),
    ],
)
def test_faulty_configs_are_refused_with_the_reason(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as error:
        load_config(write(tmp_path, text), [], TrainConfig)
    assert message in str(error.value)
    assert not (tmp_path / "pwned").exists()


BOMB = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"] + [
    f"a{row}: &a{row} [{', '.join([f'*a{row - 1}'] * 9)}]" for row in range(1, 12)
]


@pytest.mark.parametrize("text", ["\n".join(BOMB), "output: " + "[" * 50_000, "output: x\n" * 100_000 + "a: &a b"])
def test_a_config_that_would_grow_without_bound_is_refused_at_once(tmp_path, text):
    path = write(tmp_path, text)
    start = time.process_time()
    with pytest.raises(ConfigError, match=r"aliases|not plain YAML|characters"):
        load_config(path, [], TrainConfig)
    with pytest.raises(ConfigError, match=r"aliases|not plain YAML"):
        load_config(write(tmp_path, MINIMAL), ["output={" + ", ".join(BOMB) + "}"], TrainConfig)
    assert time.process_time() - start < 1


def nested(key: str, value: object) -> dict:
    """Make a config with a single value under its dotted key."""
    for name in reversed(key.split(".")):
        value = {name: value}
    assert isinstance(value, dict)
    return value


@pytest.mark.parametrize(("old", "new"), RENAMED_KEYS.items())
def test_a_key_of_an_earlier_version_is_refused_in_one_line_that_names_the_new_one(tmp_path, old, new):
    path = write(tmp_path, MINIMAL)
    assert new in flatten(load_config(path, [], TrainConfig).model_dump())
    line = f"keys of an earlier version: {old} is now called {new}"
    with pytest.raises(ConfigError) as error:
        load_config(path, [f"{old}=1"], TrainConfig)
    assert str(error.value) == f"{path}: {line}"
    written = write(tmp_path, "base: config.yaml\n" + yaml.safe_dump(nested(old, 1)), "other.yaml")
    with pytest.raises(ConfigError) as error:
        load_config(written, [], TrainConfig)
    assert str(error.value) == f"{written}: {line}"


def test_all_keys_of_an_earlier_version_stand_in_the_first_line_and_other_faults_below(tmp_path):
    path = write(tmp_path, MINIMAL)
    with pytest.raises(ConfigError) as error:
        load_config(path, [*(f"{old}=1" for old in RENAMED_KEYS), "train.stepz=3", "eval.batch_size=0"], TrainConfig)
    first, *others = str(error.value).splitlines()
    assert first.startswith(f"{path}: keys of an earlier version: ")
    assert sorted(first.split(": ", 2)[2].split("; ")) == [
        f"{old} is now called {new}" for old, new in sorted(RENAMED_KEYS.items())
    ]
    assert sorted(others) == [
        f"{path}: eval.batch_size: Input should be greater than 0 (got 0)",
        f"{path}: unknown key train.stepz; did you mean train.steps?",
    ]


@pytest.mark.parametrize(
    "override",
    ["train.steps", "=3", "output.name=3", "train.steps=[1", "train.seed=08", "train.steps=1:40", "output=runs/a #2"],
)
def test_faulty_overrides_are_refused(tmp_path, override):
    with pytest.raises(ConfigError, match="override"):
        load_config(write(tmp_path, MINIMAL), [override], TrainConfig)


def test_configs_are_immutable_and_survive_a_round_trip(tmp_path):
    config = load_config(write(tmp_path, MINIMAL), [], TrainConfig)
    with pytest.raises(ValueError, match="frozen"):
        config.train.steps = 9
    assert TrainConfig.model_validate(config.model_dump(mode="json")) == config


def test_sections_of_several_kinds_can_be_set_key_by_key(tmp_path):
    path = write(tmp_path, MINIMAL)
    config = load_config(path, ["detector.shortcuts.per_channel=false", "data.source.seed=3"], TrainConfig)
    assert config.detector.shortcuts == GatedShortcutsConfig(per_channel=False)
    assert config.data.source == WorldData(seed=3)
    of_kind = ["data.source.seed=3", "data.source.kind=world"]
    for overrides in (of_kind, of_kind[::-1]):
        assert load_config(path, overrides, TrainConfig).data.source == WorldData(seed=3)
    unnamed = write(tmp_path, MINIMAL + "detector: {shortcuts: {per_channel: false}}\n", "unnamed.yaml")
    named = write(tmp_path, "base: unnamed.yaml\ndetector: {shortcuts: {kind: gated, filter_size: 5}}\n", "named.yaml")
    expected = GatedShortcutsConfig(per_channel=False, filter_size=5)
    assert load_config(named, [], TrainConfig).detector.shortcuts == expected
    overrides = ["detector.shortcuts.filter_size=5", "detector.shortcuts.kind=gated"]
    assert load_config(unnamed, overrides, TrainConfig).detector.shortcuts == expected
    gated = write(tmp_path, MINIMAL + "detector: {shortcuts: {kind: gated, per_channel: false}}\n")
    config = load_config(gated, ["detector.shortcuts.kind=none"], TrainConfig)
    assert isinstance(config.detector.shortcuts, NoShortcutsConfig)


@pytest.mark.parametrize(
    ("name", "kind", "tool"),
    [
        ("align_rn50", TrainConfig, "ovd align-backbone"),
        ("ablation", TrainConfig, "tools/ablate.py"),
        ("quickstart", AlignConfig, "ovd train"),
    ],
)
def test_a_config_of_another_tool_is_called_that(name, kind, tool):
    path = Path(__file__).parents[1] / "configs" / f"{name}.yaml"
    with pytest.raises(ConfigError, match=f"{name}.yaml: this is a config for {tool}$"):
        load_config(path, [], kind)


def test_a_seed_that_torch_does_not_take_is_refused_for_an_alignment(tmp_path):
    path = write(tmp_path, "output: x\ntrain: {steps: 5}\n")
    with pytest.raises(ConfigError, match=r"train\.seed: Input should be less than"):
        load_config(path, ["train.seed=99999999999999999999"], AlignConfig)


def test_an_override_of_a_section_that_is_not_there_makes_it(tmp_path):
    path = write(tmp_path, MINIMAL + "eval: {second_look: null}\n")
    assert load_config(path, ["train.calibration.images=7"], TrainConfig).train.calibration is not None
    calibration = write(tmp_path, MINIMAL.replace("5}", "5, calibration: null}"), "null.yaml")
    found = load_config(calibration, ["train.calibration.images=7"], TrainConfig).train.calibration
    assert found is not None
    assert found.images == 7


@pytest.mark.parametrize(
    ("key", "known"),
    [
        ("train.sed", "train.seed"),  # bank.seed and data.source.seed exist, too
        ("bank.sed", "bank.seed"),
        ("eval.batch_sise", "eval.batch_size"),
        ("eval.compil", "eval.compile"),
        ("seedd", "bank.seed"),  # without a section, the first key is named
    ],
)
def test_of_keys_with_the_nearest_name_that_of_the_same_section_is_named(tmp_path, key, known):
    with pytest.raises(ConfigError, match=rf"unknown key {key}; did you mean {known}\?"):
        load_config(write(tmp_path, MINIMAL), [f"{key}=1"], TrainConfig)


@pytest.mark.parametrize("key", ["kind", "train.kind"])
def test_a_kind_of_what_has_none_is_the_only_fault(tmp_path, key):
    path = write(tmp_path, MINIMAL)
    with pytest.raises(ConfigError) as error:
        load_config(path, [f"{key}=none"], TrainConfig)
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"{path}: unknown key {key}")


@pytest.mark.parametrize(("key", "known"), KEYS_OF_OTHER_TRAINERS.items())
def test_keys_of_other_trainers_lead_to_those_of_this_one(tmp_path, key, known):
    section = known.split(".")[0]
    with pytest.raises(ConfigError, match=rf"unknown key {section}\.{key}; did you mean {known}\?"):
        load_config(write(tmp_path, MINIMAL), [f"{section}.{key}=1"], TrainConfig)


def test_overrides_are_a_list_and_a_path_may_be_text(tmp_path):
    path = write(tmp_path, MINIMAL)
    assert load_config(str(path), ("train.steps=7",), TrainConfig).train.steps == 7
    with pytest.raises(ConfigError, match=r"overrides must be a list, such as \['train.steps=7'\]"):
        load_config(path, "train.steps=7", TrainConfig)


def test_a_seed_of_a_table_twice_is_refused():
    path = Path(__file__).parents[1] / "configs" / "ablation.yaml"
    with pytest.raises(ConfigError, match="seeds: a seed is given twice"):
        load_config(path, ["seeds=[6, 6]"], AblationConfig)


def test_a_path_may_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    overrides = ["output=~/runs/mine", "bank.cache=banks/~", "init_from=~nobody-of-this-name/run"]
    config = load_config(CONFIGS[0].parent / "gated.yaml", overrides, TrainConfig)
    assert config.output == tmp_path / "runs" / "mine"
    assert config.bank.cache == Path("banks/~")
    assert config.init_from == Path("~nobody-of-this-name/run")
