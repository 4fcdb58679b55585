"""The HTTP API: its answers, its refusals, and its description of itself."""

import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import pytest
from encoded_images import encode
from PIL import Image
from small_server import LIMITS, png, running, until

from ovd.build.prompts import Example, Prompt
from ovd.predictor import Predictor
from ovd.serve.coco_response import base_name
from ovd.serve.detection_service import DetectionRequest, DetectionService
from ovd.visualize.palette import class_color


def test_the_answer_is_the_predictors_in_cocos_form(served, trained):
    content = png(37, 61, seed=3)
    answer = served.detect(content, threshold=0.0, overlapping="true").json()
    pixels = np.random.default_rng(3).integers(0, 256, (37, 61, 3)).astype(np.uint8)
    found = Predictor(trained)(pixels, ["anchor", "cat face"])
    assert answer["images"] == [{"id": 1, "file_name": "photo.png", "width": 61, "height": 37}]
    assert answer["categories"] == [
        {"id": 1, "name": "anchor", "color": list(class_color("anchor"))},
        {"id": 2, "name": "cat face", "color": list(class_color("cat face"))},
    ]
    assert len(answer["annotations"]) == len(found.scores) > 2
    for row, (box, score, name) in zip(
        answer["annotations"], zip(found.boxes, found.scores, found.classes, strict=True), strict=True
    ):
        x, y, width, height = row["bbox"]
        assert [x, y, x + width, y + height] == pytest.approx(box.tolist(), abs=0.02)
        assert row["score"] == pytest.approx(score.item(), abs=2e-5)
        assert row["category_id"] == name.item() + 1


def test_threshold_and_limit_choose_among_the_same_boxes(served):
    of_all = served.detect(threshold=0.0).json()["annotations"]
    middle = of_all[len(of_all) // 2]["score"]
    assert served.detect(threshold=middle + 1e-4).json()["annotations"] == [
        row for row in of_all if row["score"] > middle + 1e-4
    ]
    assert served.detect(threshold=0.0, limit=2).json()["annotations"] == of_all[:2]
    assert len(served.detect(threshold=0.0, overlapping="true").json()["annotations"]) > len(of_all)


def test_names_stand_apart_by_commas_and_lines_and_count_once(served):
    answer = served.detect(names=[" anchor,cat  face\nAnchor", "umbrella\r\n"]).json()
    assert [row["name"] for row in answer["categories"]] == ["anchor", "cat face", "umbrella"]


def test_rotated_pictures_have_the_size_that_a_viewer_shows(served, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20), "red").save(tmp_path / "turned.jpg", exif=exif)
    (image,) = served.detect((tmp_path / "turned.jpg").read_bytes()).json()["images"]
    assert (image["width"], image["height"]) == (20, 40)


def crop(seed: int) -> tuple[np.ndarray, bytes]:
    return np.random.default_rng(seed).integers(0, 256, (20, 30, 3)).astype(np.uint8), png(20, 30, seed=seed)


def ask_with_examples(served, names: str, *examples: tuple[str, bytes]):
    files = [("image", ("photo.png", png())), *(("example", ("crop.png", content)) for _, content in examples)]
    data = {"names": names, "example_name": [name for name, _ in examples], "threshold": 0, "overlapping": "true"}
    return served.client.post("/api/detect", files=files, data=data)


def test_examples_are_the_predictors_prompts(served, trained):
    (first, first_file), (second, second_file) = crop(1), crop(2)
    picture = np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8)
    answer = ask_with_examples(
        served, "anchor, umbrella", ("gadget", first_file), ("umbrella", second_file), ("gadget", second_file)
    ).json()
    prompts: list[str | Prompt] = [
        "anchor",
        Prompt("umbrella", ("umbrella",), (Example(second),)),
        Prompt("gadget", images=(Example(first), Example(second))),
    ]
    found = Predictor(trained)(picture, prompts)
    assert [row["name"] for row in answer["categories"]] == ["anchor", "umbrella", "gadget"]
    assert [row["category_id"] - 1 for row in answer["annotations"]] == found.classes.tolist()
    assert [row["score"] for row in answer["annotations"]] == pytest.approx(found.scores.tolist(), abs=2e-5)
    assert set(found.classes.tolist()) == {0, 1, 2}


def test_a_picture_may_be_asked_by_examples_alone_and_large_ones_are_reduced(served):
    wide = encode(Image.new("RGB", (1900, 900), "red"), "PNG")
    answer = ask_with_examples(served, "", ("gadget", wide))
    assert answer.status_code == 200
    assert [row["name"] for row in answer.json()["categories"]] == ["gadget"]
    assert "1 name, 1 example," in served.lines[-1]


def test_an_example_is_of_the_name_that_is_read_like_its_own(served):
    (_, first), (_, second) = crop(1), crop(2)
    answer = ask_with_examples(served, "Umbrella", ("umbrella", first), ("Gadget", first), ("gadget", second)).json()
    assert [row["name"] for row in answer["categories"]] == ["Umbrella", "Gadget"]
    alike = ask_with_examples(served, "Umbrella", ("Umbrella", first), ("Gadget", first), ("Gadget", second)).json()
    assert answer["annotations"] == alike["annotations"]


def test_blank_names_are_none(served):
    answer = served.detect(names="_, &nbsp;")
    assert (answer.status_code, answer.json()["error"][:27]) == (400, "Give at least one name to l")


def test_many_fields_of_names_are_bounded_together(served):
    field = "a," * (LIMITS.max_text_bytes // 4)
    answer = served.client.post("/api/detect", files={"image": ("a.png", png())}, data={"names": [field] * 3})
    assert answer.status_code == 413
    assert "The texts of the form are larger than" in answer.json()["error"]


def test_a_log_that_cannot_be_written_stops_no_answer(trained, settings):
    def write_line(line):
        raise BrokenPipeError

    with running(DetectionService(trained), settings, write_line=write_line) as served:
        for _ in range(2):
            assert served.client.get("/health").json() == {"status": "ok"}
        assert served.detect().status_code == 200


def test_who_has_gone_is_not_served(trained, settings):
    free, asked = threading.Event(), []

    class Held(DetectionService):
        def detect(self, requests):
            asked.append(len(requests))
            assert free.wait(20)
            return super().detect(requests)

    with running(Held(trained), settings, batch=1, waiting=4) as held, ThreadPoolExecutor(1) as pool:
        first = pool.submit(held.detect)
        until(lambda: bool(asked))
        body = held.client.build_request(
            "POST", "/api/detect", files={"image": ("a.png", png())}, data={"names": "cat"}
        )
        content = body.read()
        head = "".join(f"{name}: {value}\r\n" for name, value in body.headers.items())
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", held.port)) as gone:
                gone.sendall(f"POST /api/detect HTTP/1.1\r\n{head}\r\n".encode() + content)
                time.sleep(0.2)
        until(lambda: "ovd_waiting 1.0" in held.client.get("/metrics").text)
        free.set()
        assert first.result().status_code == 200
        assert held.detect().status_code == 200
        assert sum(asked) == 2


def test_another_address_is_no_redirect(served):
    assert served.client.get("/docs/").status_code == 404


def test_faulty_examples_are_refused_by_number_and_name(served):
    good, large = png(20, 30), png(1500, 3000)
    for examples, status, sentence in (
        ([("a", good), ("b", b"no picture")], 415, "The file of example 2, 'b', is damaged or not a picture;"),
        ([("a", good)] * 21, 400, "The multipart form cannot be read: Too many files."),
        ([("a, b", good)], 400, "Each field 'example_name' must have exactly one name."),
        ([(" ", good)], 400, "Each field 'example_name' must have exactly one name."),
        ([("x" * 101, good)], 400, "The name that starts with 'xxxx"),
    ):
        answer = ask_with_examples(served, "anchor", *examples)
        assert (answer.status_code, answer.json()["error"][: len(sentence)]) == (status, sentence)
    assert len(large) > LIMITS.max_bytes
    assert ask_with_examples(served, "anchor", ("a", large)).status_code == 413
    files = [("image", ("photo.png", png())), ("example", ("crop.png", good))]
    answer = served.client.post("/api/detect", files=files, data={"names": "anchor"})
    assert "'example' 1 time and 'example_name' 0 times" in answer.json()["error"]
    answer = served.detect(names="", example="words", example_name="a")
    assert answer.json()["error"] == "Send examples as files, in the fields 'example'."


def test_many_at_once_are_answered_each_as_alone(served):
    contents = [png(40 + i % 3, 64, seed=i) for i in range(12)]
    names = ["anchor", "cat face, umbrella", "kite"]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda i: served.detect(contents[i], names=names[i % 3], threshold=0), range(12)))
    for i, answer in enumerate(together):
        alone = served.detect(contents[i], names=names[i % 3], threshold=0)
        assert answer.status_code == alone.status_code == 200
        rows, expected = answer.json()["annotations"], alone.json()["annotations"]
        assert [row["category_id"] for row in rows] == [row["category_id"] for row in expected]
        for row, other in zip(rows, expected, strict=True):
            assert row["bbox"] == pytest.approx(other["bbox"], abs=0.02)
            assert row["score"] == pytest.approx(other["score"], abs=2e-5)
    assert any("batch of 1" not in line for line in served.lines if "/api/detect" in line)


def test_a_full_line_and_a_long_wait_are_refused_with_503(trained, settings):
    free = threading.Event()

    class Held(DetectionService):
        def detect(self, requests):
            assert free.wait(20)
            return super().detect(requests)

    service = Held(trained)
    free.set()
    request = DetectionRequest(service.prepare(png(), max_pixels=10**6), ("anchor", "cat face"))
    service.detect([request])  # encodes the names in advance
    free.clear()
    with running(service, settings, waiting=3, answer_seconds=3) as held, ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(lambda _: held.detect(), range(5)))
        free.set()
        assert held.detect().status_code == 200  # the server goes on afterwards
    sentences = [answer.json()["error"] for answer in answers]
    assert sentences.count("The server is busy with 3 requests; try again in a moment.") == 2
    assert sentences.count("The server is busy and did not finish within 3 seconds.") == 3
    assert {(answer.status_code, answer.headers["retry-after"]) for answer in answers} == {(503, "1")}


def test_names_that_the_text_tower_cannot_tell_apart_are_refused(served):
    long = "\u043e\u0447\u0435\u043d\u044c " * 10
    refused = served.detect(names=f"anchor, {long} old chair, {long} new chair")
    assert refused.status_code == 400
    assert "old chair' and '" in refused.json()["error"]
    assert "are too long for the detector to distinguish them" in refused.json()["error"]
    assert served.detect(names=f"anchor, {long} old chair").status_code == 200


def test_only_so_many_bodies_are_read_at_once(service, settings):
    """The number of bodies read at once is limited, but a client that has not sent its body takes no place in the
    queue, so slow clients do not keep others out."""
    head = b"POST /api/detect HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    with running(service, settings, waiting=2, body_seconds=20) as held, ExitStack() as clients:
        slow = [clients.enter_context(socket.create_connection(("127.0.0.1", held.port))) for _ in range(3)]
        for client in slow:
            client.sendall(head + b"Content-Length: 1000\r\n\r\n--x\r\n")
        time.sleep(0.5)
        assert held.detect().status_code == 200
        more = clients.enter_context(socket.create_connection(("127.0.0.1", held.port)))
        more.sendall(head + b"Content-Length: 1000\r\n\r\n--x\r\n")
        until(lambda: held.detect().status_code == 503)
        refused = held.detect()
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["error"] == "The server is reading 4 other requests; try again in a moment."
        for client in (*slow, more):
            client.close()
        until(lambda: held.detect().status_code == 200)


def test_a_failing_detector_is_a_500_with_a_sentence_and_no_secret(trained, settings, caplog):
    class Broken(DetectionService):
        def detect(self, requests):
            return [RuntimeError("/secret/path") for _ in requests]

    with running(Broken(trained), settings) as broken:
        answer = broken.detect()
        assert answer.status_code == 500
        assert answer.json() == {"error": "The server failed to process this request; its terminal shows the error."}
        assert broken.client.get("/health").status_code == 200
    assert "/secret/path" in caplog.text


def test_info_health_and_metrics(served):
    served.detect()
    info = served.client.get("/api/info").json()
    assert info["model"] == "tiny"
    assert info["threshold"] == 0.05
    assert info["calibrated"] is False
    assert info["trained_names"] == ["anchor", "cat face"]
    assert info["limits"]["names"] == LIMITS.names
    assert served.client.get("/health").json() == {"status": "ok"}
    served.client.get("/no/such/page")
    text = served.client.get("/metrics").text
    assert re.search(r'^ovd_requests_total\{path="/api/detect",status="200"\} [1-9]', text, re.M)
    assert re.search(r'^ovd_requests_total\{path="other",status="404"\} [1-9]', text, re.M)
    assert "no/such/page" not in text
    assert re.search(r"^ovd_batch_size_count [1-9]", text, re.M)
    assert re.search(r"^ovd_waiting 0", text, re.M)
    assert "process_resident_memory_bytes" in text


def test_the_description_is_of_what_is_there(served):
    api = served.client.get("/openapi.json").json()
    page = served.client.get("/docs").text
    for path, methods in api["paths"].items():
        for method, operation in methods.items():
            answer = served.detect() if method == "post" else served.client.get(path)
            media = operation["responses"]["200"]["content"]
            assert answer.status_code == 200, path
            assert answer.headers["content-type"].partition(";")[0] in media, path
            assert f"{method.upper()} {path}" in page
    schemas = api["components"]["schemas"]
    assert set(served.detect().json()) == set(schemas["Found"]["required"])
    assert set(served.client.get("/api/info").json()) == set(schemas["Info"]["required"])
    for name in ("images", "categories", "annotations"):
        row = served.detect().json()[name][0]
        assert set(row) == set(schemas["Found"]["properties"][name]["items"]["required"])
    fields = api["paths"]["/api/detect"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    for name, of in fields["properties"].items():
        if "maximum" in of:
            assert served.detect(**{name: of["maximum"]}).status_code == 200
            assert served.detect(**{name: of["maximum"] + 1}).status_code == 400
    references = re.findall(r'"#/components/schemas/(\w+)"', str(api).replace("'", '"'))
    assert set(references) == set(schemas)


def test_pages_load_nothing_from_elsewhere(served):
    for path in ("/", "/docs", "/app.js", "/style.css"):
        answer = served.client.get(path)
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert not re.search(r"(src|href|url)\s*[=(]\s*['\"]?(https?:)?//", answer.text), path
        assert "innerHTML" not in answer.text


def test_a_request_is_a_line(served):
    served.lines.clear()
    served.detect()
    served.client.get("/a%0Ab%20c" + 100 * "x")
    assert len(served.lines) == 2, "each is there as soon as its answer is"
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d  200  POST  /api/detect  \d\.\d{3} s  64 x 48 px, 2 names, \d+ boxes  batch of 1",
        served.lines[0],
    )
    assert re.fullmatch(r"\d\d:\d\d:\d\d  404  GET  /a\?b\?cx+\.\.\.  \d\.\d{3} s", served.lines[1])


@pytest.mark.parametrize(
    ("given", "kept"), [("../../etc/passwd", "passwd"), ("C:\\a\\b.png", "b.png"), ("a\x00\n\u202eb.png", "ab.png")]
)
def test_file_names_lose_folders_and_what_cannot_be_printed(given, kept):
    assert base_name(given) == kept
