"""ovd in detectron2. The tests are skipped if detectron2 is not installed, as no package index has it."""

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("detectron2", reason="detectron2 is not installed; it has to be built from its source")
    from detectron2.config import CfgNode, get_cfg
    from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
    from detectron2.data import transforms as d2_transforms
    from detectron2.evaluation import LVISEvaluator
    from detectron2.modeling import build_model

from ovd.data.annotations import load_annotations, load_truth
from ovd.data.images.read import read_image
from ovd.data.index import AnnotationIndex
from ovd.data.report import DataReport
from ovd.detectron2_interop import add_ovd_config, register_split, to_detections, to_instances
from ovd.evaluation.run import build_box_evaluator
from ovd.inference import Inference
from ovd.model.query_texts import QueryTexts
from ovd.structures import Detections

pytestmark = pytest.mark.filterwarnings("ignore")

CONFIG = Path(__file__).parents[1] / "configs" / "three_ways_base.yaml"


@pytest.fixture(scope="module")
def splits(miniature_world) -> Iterator[dict[str, AnnotationIndex]]:
    found = {}
    for part in ("train", "val"):
        path = miniature_world / "annotations" / f"lvis_{part}.json"
        found[part] = load_annotations(path, miniature_world / "images", format="lvis", report=DataReport())
        register_split(f"ovd_{part}", found[part])
    yield found
    for part in found:
        DatasetCatalog.remove(f"ovd_{part}")
        MetadataCatalog.remove(f"ovd_{part}")


@pytest.fixture
def cfg(splits, tmp_path) -> CfgNode:
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "OvdDetector"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.OVD.CONFIG = str(CONFIG)
    cfg.MODEL.OVD.OVERRIDES = [
        f"bank.cache={tmp_path}", "train.precision=float32", "detector.channels=32", "detector.num_convs=1",
    ]  # fmt: skip
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("ovd_train",), ("ovd_val",)
    return cfg


def test_dicts_hold_what_the_index_holds(splits):
    index, dicts = splits["train"], DatasetCatalog.get("ovd_train")
    metadata = MetadataCatalog.get("ovd_train")
    assert metadata.thing_classes == [category.name for category in index.categories]
    assert len(dicts) == len(index)
    for image, given in enumerate(dicts):
        record = index.record(image)
        assert given["file_name"] == str(record.path)
        assert (given["height"], given["width"], given["image_id"]) == (record.height, record.width, record.id)
        np.testing.assert_allclose([a["bbox"] for a in given["annotations"]], record.labels.boxes.reshape(-1, 4))
        assert [a["category_id"] for a in given["annotations"]] == record.labels.classes.tolist()
        rows = [metadata.thing_dataset_id_to_contiguous_id[number] for number in given["neg_category_ids"]]
        assert rows == record.labels.negative_classes.tolist()


@pytest.mark.parametrize("num_boxes", [0, 3])
def test_instances_and_detections_are_the_same(num_boxes):
    detections = Detections(
        boxes=torch.rand(num_boxes, 4) * 50,
        scores=torch.linspace(0.9, 0.1, num_boxes),
        classes=torch.arange(num_boxes),
    )
    instances = to_instances(detections, 60, 40)
    assert instances.image_size == (60, 40)
    back = to_detections(instances[torch.randperm(num_boxes)])
    assert all(torch.equal(value, getattr(back, name)) for name, value in vars(detections).items())


def mapper(is_train: bool, size: int = 192) -> DatasetMapper:
    resize = d2_transforms.ResizeShortestEdge(size, size)
    return DatasetMapper(is_train=is_train, augmentations=[resize], image_format="BGR")


def test_it_detects_what_ovd_detects_also_in_images_that_are_not_square(cfg, splits):
    model = build_model(cfg).eval()
    index, names = splits["val"], MetadataCatalog.get("ovd_val").thing_classes
    inference = Inference(model.detector, size=192, options=model._config.eval, low_precision=False)
    given = [mapper(False)(item) for item in DatasetCatalog.get("ovd_val")[:2]]
    given[1]["image"], given[1]["height"] = given[1]["image"][:, :130], 130
    for row, item in enumerate(given):
        (output,) = model([item])
        pixels = read_image(index.record(row).path)[: item["height"]]
        expected = inference.image(QueryTexts(model.text), pixels)
        ours = to_detections(output["instances"])
        torch.testing.assert_close(ours.scores, expected.scores, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(ours.boxes, expected.boxes, atol=1e-2, rtol=1e-4)
        assert output["instances"].pred_classes.max() < len(names)


def test_it_trains_in_detectron2s_loop_and_its_checkpoint_goes_on(cfg, splits):
    torch.manual_seed(0)
    model = build_model(cfg).train()
    assert not model.bias_is_solved
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    given = [mapper(True)(copy.deepcopy(item)) for item in DatasetCatalog.get("ovd_train")[:4]]
    given[1]["image_id"] = "frankfurt_000000"  # a text id, as in some of detectron2's data sets
    totals = []
    for _ in range(6):
        losses = model(given)
        assert set(losses) == {"class", "box", "quality"}
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert np.isfinite(totals).all()
    assert totals[-1] < totals[0]
    assert model.bias_is_solved
    again = build_model(cfg).train()
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again(given), model(given))


def test_an_image_without_objects_teaches_too(cfg, splits):
    model = build_model(cfg).train()
    item = copy.deepcopy(DatasetCatalog.get("ovd_train")[0])
    item["annotations"] = []
    given = mapper(True)(item)
    losses = model([given])
    assert all(loss.isfinite() for loss in losses.values())


def test_its_evaluators_agree_with_ours(splits, tmp_path, monkeypatch):
    """detectron2's evaluators agree with ours, on true boxes with noise, since a fresh detector finds almost
    nothing."""
    monkeypatch.setattr(np, "float", float, raising=False)  # lvis still uses it
    index = splits["val"]
    generator = torch.Generator().manual_seed(0)
    category_ids = tuple(category.id for category in index.categories)
    ours = build_box_evaluator(load_truth(index.path, format="lvis"), "lvis", category_ids, engine="hotcoco")
    theirs = LVISEvaluator("ovd_val", tasks=("bbox",), distributed=False, output_dir=str(tmp_path))
    theirs.reset()
    for image in range(len(index)):
        record = index.record(image)
        boxes = torch.tensor(record.labels.boxes) + torch.randn(len(record.labels.boxes), 4, generator=generator)
        scores = torch.rand(len(boxes), generator=generator).sort(descending=True).values
        found = Detections(boxes, scores, torch.tensor(record.labels.classes))
        ours.update(record.id, found)
        theirs.process([{"image_id": record.id}], [{"instances": to_instances(found, record.height, record.width)}])
    expected, measured = ours.compute(), theirs.evaluate()["bbox"]
    assert expected["AP"] > 0.1
    for name in ("AP", "AP50", "APr", "APc", "APf"):
        assert measured[name] == pytest.approx(100 * expected[name], abs=1e-6)


def test_half_precision_of_detectron2_becomes_bfloat16(cfg, splits):
    model = build_model(cfg).train()
    given = [mapper(True)(copy.deepcopy(item)) for item in DatasetCatalog.get("ovd_train")[:2]]
    whole = copy.deepcopy(model)(given)
    with torch.autocast("cpu", dtype=torch.float16):
        losses = model(given)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, whole[name], rtol=0.1, atol=0.02)
    sum(losses.values()).backward()
    embeddings_learn = model.detector.shortcuts.pyramid.learned[0].projection.weight.grad
    assert embeddings_learn.abs().max() > 0


def test_what_it_cannot_do_is_refused(cfg):
    cfg.MODEL.OVD.OVERRIDES = [*cfg.MODEL.OVD.OVERRIDES, "train.assignment=task_aligned"]
    with pytest.raises(ValueError, match="use fcos or atss"):
        build_model(cfg)
    cfg.MODEL.OVD.CONFIG, cfg.MODEL.OVD.RUN = "", "runs/any"
    with pytest.raises(ValueError, match=r"MODEL\.OVD\.OVERRIDES needs"):
        build_model(cfg)


@pytest.mark.parametrize("setting", ["region_distillation", "calibration"])
def test_what_detectron2s_loop_cannot_do_is_refused_in_training(cfg, splits, setting):
    cfg.MODEL.OVD.OVERRIDES = [*cfg.MODEL.OVD.OVERRIDES, f"train.{setting}={{}}"]
    model = build_model(cfg)
    given = [mapper(True)(copy.deepcopy(item)) for item in DatasetCatalog.get("ovd_train")[:1]]
    with pytest.raises(ValueError, match=rf"train\.{setting}=null in MODEL\.OVD\.OVERRIDES"):
        model.train()(given)


def test_it_wants_a_run_or_a_config(cfg):
    cfg.MODEL.OVD.CONFIG = ""
    with pytest.raises(ValueError, match=r"set MODEL\.OVD\.RUN .* or MODEL\.OVD\.CONFIG"):
        build_model(cfg)
