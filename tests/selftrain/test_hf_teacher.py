"""Teachers from Hugging Face: tiny detectors with random weights, built here and read from a folder without a
network."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.ops import box_iou

from ovd.selftrain import hf_teacher
from ovd.selftrain.hf_teacher import HuggingFaceTeacher
from ovd.selftrain.labels import TeacherBoxes
from ovd.text.prompts import TEMPLATES

OWL_TOKENS = 8
"""Number of tokens of a query: begin, six letters, end."""
QUERIES = ("a dog", "umbrella", "the red kite over a hill")


pytestmark = pytest.mark.usefixtures("no_network")


def randomise(model: nn.Module) -> None:
    """Draw all weights anew, since transformers' initial weights of some heads saturate every box."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 and "norm" in name and name.endswith("weight"):
            nn.init.ones_(parameter)
        else:
            nn.init.normal_(parameter, std=0.2)


def save_owl(folder: Path, kind: str) -> Path:
    """Save an OWL-ViT or OWLv2 with 4 x 4 patches whose tokenizer spells words letter by letter."""
    import transformers

    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = ["!", *letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: position for position, token in enumerate(tokens)}
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=[], pad_token="!")
    width = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    names = {"owlv2": "Owlv2", "owlvit": "OwlViT"}
    config = getattr(transformers, f"{names[kind]}Config")(
        text_config={
            "vocab_size": len(tokens),
            "max_position_embeddings": OWL_TOKENS,
            "bos_token_id": len(tokens) - 2,
            "eos_token_id": len(tokens) - 1,
            **width,
        },
        vision_config={"image_size": 32, "patch_size": 8, **width},
        projection_dim=32,
    )
    model = getattr(transformers, f"{names[kind]}ForObjectDetection")(config)
    randomise(model)
    images = getattr(transformers, f"{names[kind]}ImageProcessor")(size={"height": 32, "width": 32})
    getattr(transformers, f"{names[kind]}Processor")(images, tokenizer).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def owlv2(tmp_path_factory) -> Path:
    return save_owl(tmp_path_factory.mktemp("owlv2"), "owlv2")


@pytest.fixture(scope="module")
def owlvit(tmp_path_factory) -> Path:
    return save_owl(tmp_path_factory.mktemp("owlvit"), "owlvit")


@pytest.fixture(scope="module")
def grounding_dino(tmp_path_factory) -> Path:
    return save_grounding_dino(tmp_path_factory.mktemp("grounding_dino"), "GroundingDino")


@pytest.fixture(scope="module")
def mm_grounding_dino(tmp_path_factory) -> Path:
    return save_grounding_dino(tmp_path_factory.mktemp("mm_grounding_dino"), "MMGroundingDino")


def save_grounding_dino(folder: Path, kind: str) -> Path:
    """Save a Grounding DINO with 12 boxes and room for 24 tokens, whose tokenizer also spells words."""
    import transformers

    tokens = [f"[unused{position}]" for position in range(1030)]
    for position, token in {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 1012: ".", 1029: "?"}.items():
        tokens[position] = token  # ids that are fixed in the model's code
    for position, letter in enumerate("abcdefghijklmnopqrstuvwxyz"):
        tokens[200 + 2 * position : 202 + 2 * position] = [letter, "##" + letter]
    tokenizer = transformers.BertTokenizer(vocab={token: position for position, token in enumerate(tokens)})
    config = getattr(transformers, f"{kind}Config")(
        backbone_config=transformers.SwinConfig(
            embed_dim=8,
            depths=[1, 1],
            num_heads=[1, 1],
            window_size=4,
            _out_features=["stage1", "stage2"],
        ),
        text_config=transformers.BertConfig(
            vocab_size=1030, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
        ),
        d_model=32,
        num_queries=12,
        max_text_len=24,
        num_feature_levels=2,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
    )
    model = getattr(transformers, f"{kind}ForObjectDetection")(config)
    randomise(model)
    images = transformers.GroundingDinoImageProcessor(size={"shortest_edge": 48, "longest_edge": 80})
    transformers.GroundingDinoProcessor(images, tokenizer).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def open_teacher(folder: Path | str, **options) -> HuggingFaceTeacher:
    """Open a teacher that keeps every box unless `options` say otherwise."""
    everything = {"score_threshold": 0.0, "candidates": 5000, "nms_iou": 1.0}
    return HuggingFaceTeacher(folder, device=torch.device("cpu"), **(everything | options))


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def assert_same(one: TeacherBoxes, other: TeacherBoxes, tolerance: float = 0.0) -> None:
    np.testing.assert_array_equal(one.texts, other.texts)
    np.testing.assert_allclose(one.scores, other.scores, atol=tolerance, rtol=0)
    np.testing.assert_allclose(one.boxes, other.boxes, atol=100 * tolerance, rtol=0)


def assert_same_rows(found: Float[np.ndarray, "K C"], expected: Float[np.ndarray, "K C"], tolerance: float) -> None:
    """Check that both hold the same rows in any order."""
    assert found.shape == expected.shape
    distance = np.abs(found[:, None] - expected).max(axis=2)
    assert distance.min(axis=0).max() < tolerance
    assert distance.min(axis=1).max() < tolerance


@pytest.mark.parametrize(("height", "width"), [(48, 96), (96, 48), (50, 50), (9, 40), (1, 1)])
@pytest.mark.parametrize("kind", ["owlv2", "owlvit"])
def test_owl_boxes_lie_where_the_patches_are(kind, height, width, request):
    """OWL's boxes are at the patches: without its learned part, a box has the size of a patch, around the patch's
    bottom right corner."""
    teacher = open_teacher(request.getfixturevalue(kind))
    nn.init.zeros_(teacher._model.box_head.dense2.weight)
    nn.init.zeros_(teacher._model.box_head.dense2.bias)
    (found,) = teacher.detect([noise(height, width)], [("a dog",)])
    seen = np.array([max(height, width)] * 2 if kind == "owlv2" else [width, height])
    expected = []
    for row in range(1, 5):
        for column in range(1, 5):
            corner, half = seen * [column, row] / 4, seen / 8
            box = np.concatenate([corner - half, corner + half]).clip(0, [width, height] * 2)
            if (box[2:] > box[:2]).all():
                expected.append(box)
    assert_same_rows(found.boxes, np.array(expected), tolerance=5e-4 * max(height, width))


@pytest.mark.parametrize(("height", "width"), [(41, 96), (96, 37)])
def test_owlv2_sees_an_image_as_the_top_left_of_a_black_square(owlv2, height, width):
    image = noise(height, width)
    square = np.zeros((96, 96, 3), np.uint8)
    square[:height, :width] = image
    teacher = open_teacher(owlv2)
    found, padded = teacher.detect([image, square], [QUERIES, QUERIES])
    clipped = padded.boxes.clip(0, np.array([width, height] * 2, np.float32))
    inside = (clipped[:, 2:] > clipped[:, :2]).all(axis=1)
    assert 0 < inside.sum() < inside.size
    assert_same(found, TeacherBoxes(clipped[inside], padded.scores[inside], padded.texts[inside]), 1e-6)


@pytest.mark.parametrize("kind", ["owlv2", "owlvit"])
def test_owl_equals_transformers_own_postprocessing(kind, request):
    """The teacher agrees with transformers' own post-processing, which gives each box only its best query, does not
    clip boxes, and does not truncate long queries."""
    from PIL import Image
    from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

    folder, image, queries = request.getfixturevalue(kind), noise(40, 72), ["dog", "kite", "a cat"]
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForZeroShotObjectDetection.from_pretrained(folder).eval()
    inputs = processor(images=Image.fromarray(image), text=[queries], max_length=OWL_TOKENS, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    (expected,) = processor.post_process_grounded_object_detection(outputs, threshold=0.5, target_sizes=[(40, 72)])
    boxes = expected["boxes"].numpy().clip(0, [72, 40, 72, 40])
    visible = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    assert visible.sum() > 2

    (found,) = open_teacher(folder, score_threshold=0.5).detect([image], [tuple(queries)])
    for box, score, text in zip(
        boxes[visible], expected["scores"].numpy()[visible], expected["labels"].numpy()[visible], strict=True
    ):
        same = np.abs(found.boxes - box).max(axis=1) < 1e-3
        assert same.sum() >= 1
        best = found.scores[same].argmax()
        assert found.scores[same][best] == pytest.approx(score, abs=1e-6)
        assert found.texts[same][best] == text


@pytest.mark.parametrize("kind", ["owlv2", "grounding_dino"])
def test_a_batch_equals_its_images_alone(kind, request):
    teacher = open_teacher(request.getfixturevalue(kind), nms_iou=0.7)
    images = [noise(48, 96), noise(64, 30, seed=1), noise(50, 50, seed=2), noise(3, 17, seed=3)]
    queries = [QUERIES, (), ("kite",), tuple(f"{letter} dog" for letter in "abcdefghij")]
    together = teacher.detect(images, queries)
    assert [len(item.boxes) > 0 for item in together] == [True, False, True, True]
    for image, texts, found in zip(images, queries, together, strict=True):
        assert_same(found, teacher.detect([image], [texts])[0])
        assert found.boxes.shape == (len(found.texts), 4)
        assert set(found.texts) <= set(range(len(texts)))
    assert teacher.detect([], []) == []


@pytest.mark.parametrize("kind", ["owlv2", "owlvit"])
def test_queries_in_several_passes_equal_one_pass(kind, request, monkeypatch):
    teacher = open_teacher(request.getfixturevalue(kind))
    queries = tuple(f"{first} {second}" for first in "abcdefg" for second in "xyz")
    one = teacher.detect([noise(48, 96)], [queries])[0]
    assert set(one.texts) == set(range(21))
    monkeypatch.setattr(hf_teacher, "_PROMPTS_PER_PASS", 4)
    assert_same(one, teacher.detect([noise(48, 96)], [queries])[0], 1e-6)


def test_boxes_are_ranked_thresholded_suppressed_by_query_and_capped(owlv2):
    image = noise(60, 80)
    everything = open_teacher(owlv2).detect([image], [QUERIES])[0]
    assert len(everything.scores) > 20
    assert (np.diff(everything.scores) <= 0).all()

    threshold = float(np.median(everything.scores))
    above = open_teacher(owlv2, score_threshold=threshold).detect([image], [QUERIES])[0]
    np.testing.assert_array_equal(above.scores, everything.scores[everything.scores > threshold])
    capped = open_teacher(owlv2, candidates=5).detect([image], [QUERIES])[0]
    np.testing.assert_array_equal(capped.boxes, everything.boxes[:5])

    suppressed = open_teacher(owlv2, nms_iou=0.1).detect([image], [QUERIES])[0]
    assert len(suppressed.scores) < len(everything.scores)
    for text in range(len(QUERIES)):
        boxes = torch.from_numpy(suppressed.boxes[suppressed.texts == text])
        assert (box_iou(boxes, boxes) - torch.eye(len(boxes))).max() <= 0.1 + 1e-6
    different = suppressed.texts[:, None] != suppressed.texts
    overlap = box_iou(torch.from_numpy(suppressed.boxes), torch.from_numpy(suppressed.boxes)).numpy()
    assert overlap[different].max() > 0.1  # boxes of different queries may overlap


def test_a_long_query_is_cut_to_what_owl_reads(owlv2):
    teacher = open_teacher(owlv2)
    cut, whole, other = (
        teacher.detect([noise(50, 50)], [(text,)])[0] for text in ("abcdef", "abcdef " + 50 * "word ", "abcdeg")
    )
    assert len(cut.scores)
    assert not np.array_equal(cut.scores, other.scores)
    assert_same(cut, whole, 1e-6)


def test_a_template_is_put_around_a_cleaned_query(owlv2):
    image = noise(50, 50)
    plain = open_teacher(owlv2).detect([image], [("an o x", "a cow")])[0]
    filled = open_teacher(owlv2, templates=("{article} {}",)).detect([image], [("o_x", "cow")])[0]
    assert_same(plain, filled)
    with pytest.raises(ValueError, match=r"'a photo' has no \{\} for the query"):
        open_teacher(owlv2, templates=("{}", "a photo"))
    with pytest.raises(ValueError, match="at least one"):
        open_teacher(owlv2, templates=())


@pytest.mark.parametrize("kind", ["owlv2", "owlvit", "grounding_dino", "mm_grounding_dino"])
def test_one_template_equals_the_filled_queries_as_they_stand(kind, request):
    folder, image = request.getfixturevalue(kind), noise(48, 96)
    plain = open_teacher(folder).detect([image], [("my dog", "my cat", "my big kite over a hill")])[0]
    assert set(plain.texts) == {0, 1, 2}
    templated = open_teacher(folder, templates=("my {}",))
    assert_same(plain, templated.detect([image], [("dog", "cat", "big kite over a hill")])[0])


@pytest.mark.parametrize("prompts_per_pass", [512, 9, 4, 1])
@pytest.mark.parametrize("kind", ["owlv2", "owlvit"])
def test_several_templates_score_the_mean_over_prompts_read_alone(kind, prompts_per_pass, request, monkeypatch):
    """With several templates, the score is the mean over prompts; the reference runs transformers' model on one prompt
    at a time."""
    from PIL import Image
    from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

    folder, image = request.getfixturevalue(kind), noise(60, 60)
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForZeroShotObjectDetection.from_pretrained(folder).eval()
    prompts = [["o x", "an o x", "my o x"], ["cow", "a cow", "my cow"], ["z", "a z", "my z"]]
    expected, from_mean_logits = [], []
    for position, of_query in enumerate(prompts):
        logits = []
        for prompt in of_query:
            text = {"text": [[prompt]], "max_length": OWL_TOKENS}
            with torch.no_grad():
                outputs = model(**processor(images=Image.fromarray(image), return_tensors="pt", **text))
            logits.append(outputs.logits[0, :, 0].double().numpy())
        middle, size = np.split(60 * outputs.pred_boxes[0].numpy(), 2, axis=1)
        boxes = np.hstack([middle - size / 2, middle + size / 2]).clip(0, 60)
        scores = (1 / (1 + np.exp(-np.array(logits)))).mean(axis=0)
        rows = np.column_stack([boxes, 100 * scores, np.full(len(boxes), 1000 * position)])
        expected.append(rows[(boxes[:, 2:] > boxes[:, :2]).all(axis=1)])
        from_mean_logits.append(np.abs(scores - 1 / (1 + np.exp(-np.mean(logits, axis=0)))).max())
    assert max(from_mean_logits) > 1e-3  # a mean of logits would be seen

    monkeypatch.setattr(hf_teacher, "_PROMPTS_PER_PASS", prompts_per_pass)
    teacher = open_teacher(folder, templates=("{}", "{article} {}", "my {}"))
    (found,) = teacher.detect([image], [("o_x", "cow", "z")])
    assert (np.diff(found.scores) <= 0).all()
    rows = np.column_stack([found.boxes, 100 * found.scores, 1000 * found.texts])
    assert_same_rows(rows, np.concatenate(expected), tolerance=1e-3)
    assert teacher.detect([image], [()])[0].boxes.shape == (0, 4)


@pytest.mark.parametrize("kind", ["grounding_dino", "mm_grounding_dino"])
def test_grounding_dino_is_refused_several_templates(kind, request):
    with pytest.raises(ValueError, match=r"boxes depend on the text.* 7 templates; .*--templates none"):
        open_teacher(request.getfixturevalue(kind), templates=TEMPLATES["short"])
    open_teacher(request.getfixturevalue(kind), templates=TEMPLATES["none"])


def test_grounding_dino_reads_the_prompt_of_its_processor(grounding_dino):
    teacher = open_teacher(grounding_dino)
    expected = teacher._processor(text=[["a dog", "kite"]], return_tensors="pt")
    (only,) = teacher._passes(("a dog", "kite"))
    assert only.inputs.keys() == expected.keys()
    for name, tensor in only.inputs.items():
        torch.testing.assert_close(tensor, expected[name])
    words = [teacher._processor.tokenizer.decode(only.inputs["input_ids"][0, span]) for span in only.spans.values()]
    assert words == ["a dog", "kite"]


@pytest.mark.parametrize(
    ("kind", "height", "width"), [("grounding_dino", 40, 72), ("grounding_dino", 90, 33), ("mm_grounding_dino", 40, 72)]
)
def test_grounding_dino_equals_transformers_own_postprocessing(kind, height, width, request):
    """The teacher agrees with transformers' own post-processing, which scores a box by its best token, for queries of a
    single token."""
    from PIL import Image
    from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

    folder, image = request.getfixturevalue(kind), noise(height, width)
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForZeroShotObjectDetection.from_pretrained(folder).eval()
    inputs = processor(images=Image.fromarray(image), text=[["k"]], return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    outputs.logits = outputs.logits[..., 1:2]  # not begin, end and full stop, which have scores, too
    (expected,) = processor.post_process_grounded_object_detection(
        outputs, threshold=0.0, target_sizes=[(height, width)]
    )
    boxes = expected["boxes"].numpy().clip(0, [width, height] * 2)
    visible = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    assert visible.sum() > 2
    (found,) = open_teacher(folder).detect([image], [("k",)])
    rows = np.hstack([boxes, expected["scores"].numpy()[:, None]])[visible]
    assert_same_rows(np.hstack([found.boxes, found.scores[:, None]]), rows, tolerance=1e-4)


def test_grounding_dino_takes_a_pass_for_every_24_tokens(grounding_dino):
    teacher = open_teacher(grounding_dino)
    texts = ("abc", "what? a dog. a kite [SEP]", "...", "", 50 * "long ", "z")
    passes = list(teacher._passes(texts))
    assert all(one.inputs["input_ids"].shape[1] <= 24 for one in passes)
    decode = teacher._processor.tokenizer.decode
    words = {
        position: decode(one.inputs["input_ids"][0, span]).replace(" ", "")
        for one in passes
        for position, span in one.spans.items()
    }
    assert words == {0: "abc", 1: "whatadogakite", 4: (50 * "long")[:21], 5: "z"}
    assert [list(one.spans) for one in passes] == [[0, 1], [4], [5]]
    found = teacher.detect([noise(40, 72)], [texts])[0]
    assert set(found.texts) == {0, 1, 4, 5}
    assert teacher.detect([noise(40, 72)], [("...", "")])[0].boxes.shape == (0, 4)


@pytest.mark.parametrize("kind", ["owlv2", "owlvit", "grounding_dino"])
@pytest.mark.parametrize(("height", "width"), [(1, 300), (300, 1)])
def test_a_strip_is_seen_with_black_beside_it(kind, height, width, request):
    image = noise(height, width)
    padded = np.zeros((max(height, 10), max(width, 10), 3), np.uint8)
    padded[:height, :width] = image
    found, expected = open_teacher(request.getfixturevalue(kind)).detect([image, padded], [("kite",)] * 2)
    clipped = expected.boxes.clip(0, np.array([width, height] * 2, np.float32))
    inside = (clipped[:, 2:] > clipped[:, :2]).all(axis=1)
    assert_same(found, TeacherBoxes(clipped[inside], expected.scores[inside], expected.texts[inside]), 1e-6)


def test_the_name_tells_weights_and_settings_apart(owlv2, owlvit):
    names = [open_teacher(owlv2).name, open_teacher(owlv2, score_threshold=0.1).name, open_teacher(owlvit).name]
    several = (("{}",), ("{}", "my {}"), ("my {}", "{}"))
    names += [open_teacher(owlv2, templates=templates).name for templates in several]
    assert names[0] == open_teacher(owlv2).name
    assert len(set(names)) == 6
    assert "'{}', 'my {}'" in names[4]
    assert names[0].startswith("owlv2 sha256 ")


def test_the_name_tells_apart_how_images_are_prepared(owlv2, tmp_path):
    shutil.copytree(owlv2, tmp_path / "smaller")
    settings = json.loads((tmp_path / "smaller" / "processor_config.json").read_text())
    settings["image_processor"]["size"] = {"height": 24, "width": 24}
    (tmp_path / "smaller" / "processor_config.json").write_text(json.dumps(settings))
    assert open_teacher(tmp_path / "smaller").name != open_teacher(owlv2).name


def test_the_name_of_a_model_does_not_depend_on_where_it_lies(owlv2, tmp_path):
    shutil.copytree(owlv2, tmp_path / "moved")
    assert open_teacher(tmp_path / "moved").name == open_teacher(owlv2).name


def test_without_transformers_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"google/owlv2 needs the package transformers.*pip install transformers"):
        HuggingFaceTeacher("google/owlv2", device=torch.device("cpu"), score_threshold=0.1, candidates=10, nms_iou=0.5)


def test_a_model_that_is_not_cached_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"nobody/no-such-model cannot be loaded \(.*HF_HOME.*HF_HUB_OFFLINE"):
        open_teacher("nobody/no-such-model")
    with pytest.raises(ValueError, match=f"{tmp_path} cannot be loaded"):
        open_teacher(tmp_path)


def test_a_model_of_another_kind_is_refused(tmp_path):
    from transformers import CLIPConfig

    CLIPConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a 'clip'; supported zero-shot detectors are: owlvit, owlv2"):
        open_teacher(tmp_path)


def test_missing_and_broken_weights_are_refused(owlv2, tmp_path):
    for file in owlv2.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(owlv2 / "model.safetensors")
    name = "class_head.dense0.weight"
    save_file(
        weights | {name: torch.full_like(weights[name], torch.nan)}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(ValueError, match="gave NaN"):
        open_teacher(tmp_path).detect([noise(20, 20)], [("dog",)])
    del weights[name]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"lacks 1 weight: {name}"):
        open_teacher(tmp_path)
    save_file(weights | {name: torch.zeros(2, 2)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"{tmp_path} cannot be loaded"):
        open_teacher(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((owlv2 / "model.safetensors").read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{tmp_path} cannot be loaded"):
        open_teacher(tmp_path)
