"""Experts as users make and use them: each answers its own names, and the answers to other names do not change."""

import json
import shutil
from argparse import Namespace
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import real_layouts
import torch
from safetensors.torch import load_file
from scripts import module_of
from small_fine_tuning import fine_tuning_config
from small_run import source_of

from ovd.build.data import load_validation_index
from ovd.build.prompts import Example, Prompt
from ovd.build.text import queries_of_names
from ovd.build.trained import build_inference, find_checkpoint, load_detector
from ovd.commands.arguments import load_requested_detector
from ovd.config_files import ConfigError
from ovd.data.report import DataReport
from ovd.experts.folder import ExpertError, read_expert
from ovd.experts.group import ExpertGroup
from ovd.experts.inference import ExpertInference
from ovd.export.detector import export_detector
from ovd.inference import ImageBatch
from ovd.jobs.evaluate import evaluate_run
from ovd.jobs.fine_tune import fine_tune, format_outcomes
from ovd.jobs.train import train_from_config
from ovd.model.query_texts import QueryTexts
from ovd.model.shared_layers import shared_parameters
from ovd.predictor import Predictor
from ovd.structures import Detections

NEW = ("striped heart", "oak leaf", "paper boat")
HOME = ["umbrella", "anchor", "coffee cup", "snowman"]


def new_data(folder: Path, world: Path, names: tuple[str, ...], synonyms: tuple[str, ...] = ()) -> dict[str, str]:
    """Write the world in COCO's form with other names for its boxes."""
    layout = real_layouts.coco(world, folder)
    for path in {layout.train_annotations, layout.val_annotations}:
        content = json.loads(Path(path).read_text())
        kept = [category["id"] for category in content["categories"][: len(names)]]
        for row in content["annotations"]:
            row["category_id"] = kept[row["category_id"] % len(kept)]
        content["categories"] = [
            {"id": identifier, "name": name, "synonyms": list(synonyms) if number == 0 else []}
            for number, (identifier, name) in enumerate(zip(kept, names, strict=True))
        ]
        Path(path).write_text(json.dumps(content))
    return {name: str(value) for name, value in vars(layout).items()}


def make_expert(
    start: Path, output: Path, source: dict, seed: int = 0, *, measures_kept: bool = False, **expert
) -> Path:
    config = fine_tuning_config(
        output, source, init_from=str(start), data={"classes": "all"}, train={"negatives": "all", "seed": seed},
        expert=expert,
    )  # fmt: skip
    fine_tune(config, weight=0.5, measures_kept=measures_kept)
    return output


@pytest.fixture(scope="module")
def experts(start, tmp_path_factory, miniature_world) -> list[Path]:
    """Three experts: three names and a fully shared backbone; one name and two own layers; two names, one of them the
    first expert's, and no shared layers.

    The AP that is kept is measured for the second one only.
    """
    folder = tmp_path_factory.mktemp("experts")
    sources = [
        new_data(folder / "data0", miniature_world, NEW, synonyms=("heart with stripes",)),
        new_data(folder / "data1", miniature_world, ("brass key",)),
        new_data(folder / "data2", miniature_world, ("oak leaf", "tin can")),
    ]
    settings: list[dict[str, Any]] = [{"own_layers": 0}, {"own_layers": 2}, {"own_layers": "all"}]
    return [
        make_expert(start, folder / f"run{number}", source, seed=number, measures_kept=number == 1, **expert)
        for number, (source, expert) in enumerate(zip(sources, settings, strict=True))
    ]


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (60, 90, 3)).astype(np.uint8)


def same(one: Detections, other: Detections) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("boxes", "scores", "classes"))


def of_names(found: Detections, rows: list[int]) -> Detections:
    chosen = torch.isin(found.classes, torch.tensor(rows))
    return Detections(found.boxes[chosen], found.scores[chosen], found.classes[chosen])


def test_an_expert_stores_its_own_layers_and_the_learned_path_alone(start, experts) -> None:
    tensors = [load_file(path / "expert" / "expert.safetensors") for path in experts]
    base = load_detector(start)
    names = dict(base.detector.named_parameters())
    backbone = [sum(name.startswith("backbone") for name in of_expert) for of_expert in tensors]
    num_parameters = sum(name.startswith("backbone") for name in names)
    assert backbone[0] == 0 < backbone[1] < num_parameters
    assert backbone[2] == num_parameters
    learned = {name for name in names if not name.startswith("backbone")}
    for of_expert in tensors:
        assert learned <= of_expert.keys()
    description = read_expert(experts[0]).description
    assert description.names == NEW
    assert description.synonyms == (("heart with stripes",), (), ())
    assert description.own_layers == 0
    assert "AP" in description.metrics["new"]
    assert read_expert(experts[2]).description.own_layers == len(base.detector.backbone.layers())


def test_home_is_as_before_to_the_bit_alone_and_together(start, experts, image) -> None:
    before = Predictor.load(start)(image, HOME)
    assert len(before.scores) > 0
    for used in (experts[:1], experts[1:2], experts):
        # The cap on the merged list counts the answers that it cuts off; with these names alone it cuts off none.
        predictor = Predictor.load(start, experts=used)
        assert same(predictor(image, HOME), before)
        together = predictor(image, [*HOME, *NEW, "brass key"])
        found = of_names(together, list(range(len(HOME))))
        inference = predictor._inference
        assert isinstance(inference, ExpertInference)
        if inference.num_capped == 0:
            assert same(found, before)
        else:  # the cap left the best of them
            assert same(found, Detections(*(getattr(before, name)[: len(found.scores)] for name in vars(before))))


def test_an_expert_answers_for_its_names_and_synonyms_in_any_spelling(start, experts, image) -> None:
    base, with_expert = Predictor.load(start), Predictor.load(start, experts=experts[:1], same_place="both")
    own = with_expert(image, ["paper boat"])
    assert not same(own, base(image, ["paper boat"]))
    assert same(with_expert(image, ["Paper_Boat"]), own)
    assert not same(with_expert(image, ["heart with stripes"]), base(image, ["heart with stripes"]))
    assert same(with_expert(image, ["heart"]), base(image, ["heart"]))


def test_a_name_with_an_example_is_answered_by_the_detector_and_that_is_told(start, experts, image, capsys) -> None:
    prompt = Prompt("oak leaf", ("oak leaf",), (Example(image),))
    found = Predictor.load(start, experts=experts)(image, ["anchor", prompt])
    assert "the prompt 'oak leaf' has several texts or examples" in capsys.readouterr().err
    assert same(found, Predictor.load(start)(image, ["anchor", prompt]))
    Predictor.load(start, experts=experts)(image, ["oak leaf", Prompt("anchor", ("anchor",), (Example(image),))])
    assert "several texts or examples" not in capsys.readouterr().err


def test_an_experts_answers_are_those_of_the_fine_tuned_detector(start, experts, image) -> None:
    """An expert's answers are those of its fine-tuned detector, which is stored separately, with all its layers, as an
    ordinary run."""
    for path, names in zip(experts, [[*NEW], ["brass key"], ["oak leaf", "tin can"]], strict=True):
        assert same(Predictor.load(start, experts=[path])(image, names), Predictor.load(path)(image, names))


def test_order_does_not_matter_and_one_removed_changes_no_other(start, experts, image) -> None:
    asked = [*HOME, "brass key", *NEW, "tin can"]
    found = [Predictor.load(start, experts=order)(image, asked) for order in list(permutations(experts))[::2]]
    assert all(same(other, found[0]) for other in found)
    fewer = Predictor.load(start, experts=experts[:2])
    all_three = Predictor.load(start, experts=[*experts[:2], experts[2]])
    only = ["brass key", "paper boat", *HOME]  # names that the third expert does not have
    assert same(fewer(image, only), all_three(image, only))
    with pytest.raises(ValueError, match="given twice"):
        Predictor.load(start, experts=[experts[0], experts[0] / "expert"])


def test_scores_are_probabilities_if_those_of_all_who_answer_are(start, experts) -> None:
    predictor = Predictor.load(start, experts=experts[:2])
    assert not predictor.is_calibrated
    calibration: Any = SimpleNamespace(threshold_for=lambda options: 0.3)
    assert isinstance(predictor._inference, ExpertInference)
    *others, last = predictor._inference._inferences
    for answerer in others:
        answerer.calibration = calibration
    assert not predictor.is_calibrated
    last.calibration = calibration
    assert predictor.is_calibrated


def test_a_prefilter_is_of_all_who_answer(start, experts) -> None:
    predictor = Predictor.load(start, experts=experts[:2], prefilter=0.2)
    assert isinstance(predictor._inference, ExpertInference)
    assert [answerer.options.prefilter for answerer in predictor._inference._inferences] == [0.2] * 3


def test_each_image_with_queries_of_its_own_as_a_batch_or_alone(start, experts) -> None:
    from ovd.build.text import evaluation_text
    from ovd.build.trained import build_inference

    trained = load_detector(start, experts=ExpertGroup(tuple(experts)))
    inference = build_inference(trained)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, 3, 64, 96), dtype=torch.uint8, generator=generator)
    sizes = torch.tensor([[64, 96], [64, 80], [64, 96]])
    asked = [["umbrella", "paper boat"], [], ["brass key"]]
    queries = [
        QueryTexts(evaluation_text(trained.config, trained.clip, names) if names else torch.zeros(0, trained.clip.dim))
        for names in asked
    ]
    batch = ImageBatch(images, sizes, sizes)
    found = inference.detect_each(queries, batch)
    assert len(found[1].scores) == 0
    for row in (0, 2):
        (alone,) = inference.detect(queries[row], batch.of_images(slice(row, row + 1)))
        torch.testing.assert_close(found[row].boxes, alone.boxes, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(found[row].scores, alone.scores, atol=1e-4, rtol=1e-3)
        assert torch.equal(found[row].classes, alone.classes)


def test_evaluation_at_home_is_the_same_file_and_the_new_sets_is_that_of_the_tuned_run(start, experts, tmp_path):
    home = load_validation_index(load_detector(start).config, DataReport())
    assert home is not None
    group = ExpertGroup((experts[1],))
    evaluate_run(load_detector(start), output=tmp_path / "without", index=home)
    evaluate_run(load_detector(start, experts=group), output=tmp_path / "with", index=home)
    results = [(tmp_path / name / "results.json").read_bytes() for name in ("without", "with")]
    assert results[0] == results[1]
    outcomes = json.loads((experts[1] / "fine_tuning.json").read_text())
    assert [outcome["detector"] for outcome in outcomes] == ["before", "expert"]
    assert outcomes[0]["kept"] == outcomes[1]["kept"]
    assert outcomes[1]["new"] == read_expert(experts[1]).description.metrics["new"]


def test_a_base_that_was_trained_again_is_refused_with_both_hashes(start, experts, tmp_path, miniature_world) -> None:
    again = tmp_path / "again"
    config = fine_tuning_config(again, source_of(miniature_world), train={"seed": 5})
    train_from_config(config, evaluate=False)
    with pytest.raises(ExpertError, match=r"expert of another detector: .* sha256 [0-9a-f]{64}; .* have [0-9a-f]{64}"):
        Predictor.load(again, experts=experts[:1])
    moved = tmp_path / "moved"
    shutil.copytree(start, moved)
    Predictor.load(moved, experts=experts[:1])


def test_training_that_changes_what_is_shared_is_refused(start, experts, tmp_path) -> None:
    """Training that changes shared weights is refused: here an expert without layers of its own has a trained
    backbone."""
    from ovd.build.data import load_training_index
    from ovd.jobs.experts import save_expert

    tuned = load_detector(experts[2])
    config = tuned.config.model_copy(update={"expert": load_detector(experts[0]).config.expert})
    index = load_training_index(config, DataReport())
    with pytest.raises(ExpertError, match=r"training changed \d+ shared tensors?"):
        save_expert(tmp_path / "x", config, load_detector(start), tuned, index)
    assert not (tmp_path / "x").exists()


def test_settings_that_contradict_an_expert(start, tmp_path, miniature_world) -> None:
    source = source_of(miniature_world)
    with pytest.raises(ConfigError, match="expert needs init_from"):
        fine_tuning_config(tmp_path, source, expert={})
    with pytest.raises(ConfigError, match=r"expert\.own_layers sets which layers are trained"):
        fine_tuning_config(tmp_path, source, init_from=str(start), expert={}, detector={"frozen_layers": 1})
    larger = fine_tuning_config(tmp_path / "larger", source, init_from=str(start), expert={}, data={"size": 96})
    with pytest.raises(ValueError, match=r"data\.size is 96, but 64 in"):
        fine_tune(larger, weight=0.5)
    too_many = fine_tuning_config(tmp_path / "many", source, init_from=str(start), expert={"own_layers": 99})
    with pytest.raises(ValueError, match=r"own_layers is 99, but the backbone has \d+ layers"):
        fine_tune(too_many, weight=0.5)


def test_an_expert_starts_from_no_expert(start, experts, tmp_path, miniature_world) -> None:
    source = new_data(tmp_path / "data", miniature_world, ("tin can",))
    for expert in ({"own_layers": 0}, {"learn": "names"}, None):
        config = fine_tuning_config(
            tmp_path / "again", source, init_from=str(experts[1]), data={"classes": "all"}, train={"negatives": "all"},
            expert=expert,
        )  # fmt: skip
        words = rf"run1 is the run of an expert of {start}; .* Start from the detector: init_from={start}$"
        with pytest.raises(ValueError, match=words):
            fine_tune(config, weight=0.5, measures_kept=False)
    assert not (tmp_path / "again").exists()


def test_an_expert_with_other_settings_starts_from_the_same_detector(start, experts) -> None:
    config = load_detector(experts[0]).config
    otherwise = config.model_copy(update={"train": config.train.model_copy(update={"seed": 7})})
    words = rf"different settings: train\.seed was 0, is 7\. .* keep init_from={start} and give another output$"
    with pytest.raises(ValueError, match=words):
        fine_tune(otherwise, weight=0.5)


def test_the_run_of_an_expert_that_is_taken_for_a_detector_is_told_of_once(start, experts, capsys) -> None:
    warning = (
        "warning: {path} is the run of an expert of {start}; alone, it may have forgotten all other classes: "
        "use {start} with --expert {run} (in Python: experts=)\n"
    )
    run = experts[0]
    asked: dict[str, Any] = {"device": None, "expert": [], "same_place": None, "nearest": False, "size": None}
    for path in (run, find_checkpoint(run).folder):
        for load in (Predictor.load, lambda path: load_requested_detector(Namespace(run=path, **asked))):
            load(path)
            assert capsys.readouterr().err == warning.format(path=path, start=start, run=run)
    Predictor.load(start, experts=[run])
    # Writing the expert again loads the run, without the warning.
    fine_tune(load_detector(run, warns=False).config, weight=0.5, measures_kept=False)
    assert "is the run of" not in capsys.readouterr().err


def test_the_run_of_an_expert_is_not_exported(start, experts, tmp_path) -> None:
    words = rf"run0 is the run of an expert of {start}; .* cannot be exported; export {start}$"
    with pytest.raises(ValueError, match=words):
        export_detector(load_detector(experts[0]), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_the_table_names_the_expert(experts) -> None:
    from ovd.jobs.fine_tune import Outcome

    outcomes = tuple(Outcome(**row) for row in json.loads((experts[0] / "fine_tuning.json").read_text()))
    assert format_outcomes(outcomes).splitlines()[2].startswith("expert")


def test_the_tool_lists_checks_and_removes(start, experts, tmp_path, monkeypatch, capsys) -> None:
    main = module_of("tools/experts.py").main

    def call(*arguments: object) -> str:
        monkeypatch.setattr("sys.argv", ["experts.py", *map(str, arguments)])
        main()
        return capsys.readouterr().out

    shown = call("list", experts[0])
    assert "3 names (striped heart, oak leaf, paper boat)" in shown
    assert "0 own backbone layers" in shown
    assert "not calibrated, AP" in shown
    assert call("check", start, experts[0]).endswith(f"{experts[0]}: undamaged, an expert of {start}\n")
    answered = call("who", start, *experts[:2], "--classes", "umbrella, oak leaf, brass key").splitlines()
    assert answered[0].split()[0] == "query"
    assert answered[1].startswith("umbrella")
    assert str(experts[0]) not in answered[1]
    assert f"oak leaf   {experts[0]}" in answered[2]
    assert f"brass key  {experts[1]}" in answered[3]
    with pytest.raises(ValueError, match="an expert is given twice"):
        call("who", start, experts[0], experts[0] / "expert", "--classes", "umbrella")
    copied = tmp_path / "copied"
    shutil.copytree(experts[0], copied)
    assert call("remove", copied).endswith(f"removed {copied / 'expert'}\n")
    assert not (copied / "expert").exists()
    assert next(copied.glob("step-*")).exists()
    with pytest.raises(ExpertError, match="has no expert"):
        call("check", start, copied)


def test_an_expert_that_learns_names_alone_has_nothing_else_and_costs_no_second_pass(
    start, tmp_path, miniature_world, image, monkeypatch
) -> None:
    source = new_data(tmp_path / "data", miniature_world, ("oak leaf", "tin can"), synonyms=("leaf of an oak",))
    path = make_expert(start, tmp_path / "run", source, learn="names")
    stored = load_file(path / "expert" / "expert.safetensors")
    assert set(stored) == {"expert.text", "expert.base_text", "expert.answers"}
    assert not torch.equal(stored["expert.text"], stored["expert.answers"])
    torch.testing.assert_close(stored["expert.answers"].norm(dim=1), torch.ones(len(stored["expert.text"])))
    before, predictor = Predictor.load(start), Predictor.load(start, experts=[path], same_place="both")
    assert same(predictor(image, HOME), before(image, HOME))
    assert not same(predictor(image, ["oak leaf"]), before(image, ["oak leaf"]))
    assert not same(predictor(image, ["leaf of an oak"]), before(image, ["leaf of an oak"]))
    alone = Predictor.load(path)  # the expert's own run detects and evaluates with what it learned
    assert same(alone(image, ["oak leaf", "tin can"]), predictor(image, ["oak leaf", "tin can"]))
    metrics = evaluate_run(load_detector(path), output=tmp_path / "alone").metrics
    assert metrics == read_expert(path).description.metrics["new"]
    num_passes = 0
    detector = predictor._inference.detector
    whole = detector.predict_from

    def counted(features, images):
        nonlocal num_passes
        num_passes += 1
        return whole(features, images)

    monkeypatch.setattr(detector, "predict_from", counted)
    together = predictor(image, [*HOME, "oak leaf"])
    assert num_passes == 1
    assert same(of_names(together, list(range(len(HOME)))), before(image, HOME))


def test_learned_names_take_no_layers(start, tmp_path, miniature_world) -> None:
    source = source_of(miniature_world)
    with pytest.raises(ConfigError, match=r"expert\.learn=names learns no layers"):
        fine_tuning_config(tmp_path, source, init_from=str(start), expert={"learn": "names", "own_layers": 1})
    with pytest.raises(ConfigError, match=r"start_distillation cannot be used with expert"):
        fine_tuning_config(tmp_path, source, init_from=str(start), expert={}, train={"start_distillation": 1.0})


@pytest.mark.slow
@pytest.mark.parametrize("own_layers", [0, 2])
def test_adapters_are_all_that_is_stored_of_the_layers_below(
    start, tmp_path, miniature_world, image, own_layers
) -> None:
    source = new_data(tmp_path / "data", miniature_world, ("oak leaf", "tin can"))
    path = make_expert(start, tmp_path / "run", source, rank=2, own_layers=own_layers)
    stored = load_file(path / "expert" / "expert.safetensors")
    backbone = load_detector(start).detector.backbone
    below = {id(parameter) for parameter in shared_parameters(backbone, own_layers)}
    own = {f"backbone.{name}" for name, parameter in backbone.named_parameters() if id(parameter) not in below}
    of_backbone = {name for name in stored if name.startswith("backbone.")}
    assert own <= of_backbone
    assert {name.rpartition(".")[2] for name in of_backbone - own} == {"up", "down"}
    assert any(tensor.abs().sum() > 0 for name, tensor in stored.items() if name.endswith(".up"))
    asked = ["oak leaf", "tin can"]
    with_expert = Predictor.load(start, experts=[path])
    assert same(with_expert(image, asked), Predictor.load(path)(image, asked))
    assert same(with_expert(image, HOME), Predictor.load(start)(image, HOME))


def test_adapters_are_of_layers_that_are_not_the_experts_own(start, tmp_path, miniature_world) -> None:
    source = source_of(miniature_world)
    with pytest.raises(ConfigError, match=r"expert\.rank is for layers that are not the expert's own"):
        fine_tuning_config(tmp_path, source, init_from=str(start), expert={"rank": 2, "own_layers": "all"})


def test_experts_are_described_alike_in_any_order_and_by_how_they_are_used(start, experts) -> None:
    def describe(folders, **options) -> str:
        trained = load_detector(start, experts=ExpertGroup(tuple(folders), **options))
        inference = build_inference(trained)
        assert isinstance(inference, ExpertInference)
        return inference.describe_experts()

    assert describe(experts) == describe(experts[::-1])
    assert len({describe(experts), describe(experts, nearest=True), describe(experts, same_place="both")}) == 3


def test_boxes_that_lists_had_no_room_for_are_counted_over_all_images(start, experts) -> None:
    trained = load_detector(start, experts=ExpertGroup(tuple(experts)))
    config = trained.config.model_copy(update={"eval": trained.config.eval.model_copy(update={"max_detections": 1})})
    inference = build_inference(replace(trained, config=config))
    assert isinstance(inference, ExpertInference)
    queries = queries_of_names(trained, [*HOME, *NEW])
    images = torch.randint(0, 256, (3, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sizes = torch.full((3, 2), 64)
    counts = [0]
    for row in range(3):
        inference.detect(queries, ImageBatch(images[row : row + 1], sizes[:1], sizes[:1]))
        counts.append(inference.num_capped)
    assert counts[1] > 0
    assert counts == sorted(set(counts))  # each image adds to the count
