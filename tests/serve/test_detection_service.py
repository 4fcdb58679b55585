"""Answers to batched requests equal those for each picture alone, and the predictor's."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_server import png

from ovd.predictor import Predictor
from ovd.serve.detection_service import DetectionRequest, DetectionService
from ovd.structures import Detections

SHAPES = [(48, 64), (64, 64), (40, 61), (64, 48), (200, 90), (33, 64)]
LISTS = [("anchor", "cat face"), ("umbrella",), ("cat face", "umbrella", "a red kite"), ("anchor",)]


def requests_of(service: DetectionService) -> list[DetectionRequest]:
    pixels = [np.random.default_rng(i).integers(0, 256, (*shape, 3)).astype(np.uint8) for i, shape in enumerate(SHAPES)]
    return [DetectionRequest(service.prepare_pixels(image), LISTS[i % len(LISTS)]) for i, image in enumerate(pixels)]


def assert_same(found: Detections | Exception, expected: Detections | Exception) -> None:
    assert isinstance(found, Detections)
    assert isinstance(expected, Detections)
    assert torch.equal(found.classes, expected.classes)
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=1e-3)
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-5)


def test_a_picture_in_company_gets_the_answer_that_it_gets_alone(trained):
    service = DetectionService(trained)
    requests = requests_of(service)
    of_shape: dict[tuple[int, int], list[DetectionRequest]] = {}
    for request in requests:
        of_shape.setdefault(request.image.padded_shape, []).append(request)
    assert max(map(len, of_shape.values())) > 2
    for together in of_shape.values():
        for request, found in zip(together, service.detect(together), strict=True):
            (alone,) = service.detect([request])
            assert_same(found, alone)


@pytest.mark.parametrize("with_ensemble", [False, True])
def test_it_answers_as_the_predictor_does(trained, with_ensemble):
    if with_ensemble:
        values = trained.config.model_dump()
        values["eval"]["ensemble"] = {"base": 0.1, "novel": 0.9}
        trained.detector.keeps_dense = True
        trained = replace(trained, config=type(trained.config).model_validate(values))
    try:
        service, predictor = DetectionService(trained), Predictor(trained)
        for names in LISTS[1:3]:
            (found,) = service.detect([DetectionRequest(service.prepare(png(), max_pixels=10**6), names)])
            image = np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8)
            assert_same(found, predictor(image, names))
    finally:
        trained.detector.keeps_dense = False


def test_a_question_that_fails_does_not_stop_the_others(trained, monkeypatch):
    service = DetectionService(trained)
    good = DetectionRequest(service.prepare_pixels(np.full((64, 64, 3), 90, dtype=np.uint8)), ("anchor",))
    bad = DetectionRequest(service.prepare_pixels(np.zeros((64, 64, 3), dtype=np.uint8)), ("anchor",))
    original = service.inference.detect_each

    def detect_each(queries, batch):
        if (batch.images.flatten(1).amax(dim=1) == 0).any():
            raise RuntimeError("a black picture")
        return original(queries, batch)

    monkeypatch.setattr(service.inference, "detect_each", detect_each)
    answers = service.detect([good, bad, good])
    assert [type(answer).__name__ for answer in answers] == ["Detections", "RuntimeError", "Detections"]


def test_rows_of_names_are_encoded_once_and_the_oldest_are_forgotten(trained, monkeypatch):
    import ovd.serve.detection_service as module

    asked = []
    encode = module.text_of_names

    def text_of_names(trained, names):
        asked.append(list(names))
        return encode(trained, names)

    monkeypatch.setattr(module, "text_of_names", text_of_names)
    monkeypatch.setattr(module, "MAX_CACHED_NAMES", 2)
    service = DetectionService(trained)
    picture = service.prepare_pixels(np.zeros((64, 64, 3), dtype=np.uint8))
    for names in (("anchor", "cat"), ("cat", "dog"), ("dog", "cat"), ("anchor",), ("cat",)):
        service.detect([DetectionRequest(picture, names)])
    assert asked == [["anchor", "cat"], ["dog"], ["anchor"]]
