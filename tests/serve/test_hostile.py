"""Hostile requests: each is refused or disconnected, and the server goes on without using more memory."""

import contextlib
import re
import socket
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from encoded_images import encode
from small_server import LIMITS, Running, png, running

CLOSED = 0
"""Status used for a connection that ended without an answer."""
BOUNDARY = "xyz"
FORM = f"Content-Type: multipart/form-data; boundary={BOUNDARY}"


def part(name: str, content: bytes, *, file_name: str | None = None) -> bytes:
    file = "" if file_name is None else f'; filename="{file_name}"'
    return f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + content + b"\r\n"


def form(*parts: bytes, image: bytes | None = None, names: bytes | None = b"anchor") -> bytes:
    """Make a form body of a picture, names, and more parts."""
    own = [part("image", png() if image is None else image, file_name="a.png")]
    own += [] if names is None else [part("names", names)]
    return b"".join([*own, *parts, f"--{BOUNDARY}--\r\n".encode()])


def request(
    body: bytes = b"",
    *headers: str,
    line: str = "POST /api/detect HTTP/1.1",
    host: str = "127.0.0.1",
    length: int | str | None = None,
) -> bytes:
    """Make the bytes of a request that is valid except for the given arguments."""
    length = len(body) if length is None else length
    lines = [line, f"Host: {host}", f"Content-Length: {length}", *(headers or (FORM,))]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def chunked(content: bytes, *headers: str) -> bytes:
    lines = ["POST /api/detect HTTP/1.1", "Host: 127.0.0.1", "Transfer-Encoding: chunked", *(headers or (FORM,))]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


def png_bomb(side: int) -> bytes:
    """Make a PNG whose header claims very many pixels, with hardly any content."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(100_000)))
        + chunk(b"IEND", b"")
    )


def text_bomb() -> bytes:
    """Make a small PNG file with a text of 60 megabytes, compressed to a few hundred kilobytes."""
    plain = png(8, 8)
    content = b"comment\x00\x00" + zlib.compress(bytes(60_000_000), 1)
    kind = b"zTXt"
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return plain[:33] + chunk + plain[33:]


def saved(kind: str, **options: object) -> bytes:
    """Encode an image of eleven megapixels of one color, which compresses to very little."""
    return encode(np.zeros((3300, 3300), dtype=np.uint8), kind, **options)


def gif_bomb() -> bytes:
    return (
        b"GIF89a"
        + struct.pack("<HH", 65535, 65535)
        + b"\x80\x00\x00"
        + bytes(6)
        + b","
        + struct.pack("<HHHH", 0, 0, 65535, 65535)
        + b"\x00\x02\x02L\x01\x00;"
    )


HOSTILE: dict[str, tuple[Callable[[], bytes], set[int]]] = {
    # files of the server
    "path up": (lambda: request(line="GET /../../../etc/passwd HTTP/1.1"), {404}),
    "path up, escaped": (lambda: request(line="GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1"), {404}),
    "path up, escaped twice": (lambda: request(line="GET /%252e%252e%252fetc%252fpasswd HTTP/1.1"), {404}),
    "path up, backslashes": (lambda: request(line="GET /..\\..\\etc\\passwd HTTP/1.1"), {404}),
    "path up, overlong UTF-8": (lambda: request(line="GET /%c0%ae%c0%ae/etc/passwd HTTP/1.1"), {404}),
    "path with a null byte": (lambda: request(line="GET /style.css%00.png HTTP/1.1"), {404}),
    "path beside the page": (lambda: request(line="GET /app.js/../../serve.py HTTP/1.1"), {404}),
    "file URL as target": (lambda: request(line="GET file:///etc/passwd HTTP/1.1"), {404}),
    "file name up": (lambda: request(form(names=None)), {400}),
    "very long URL": (lambda: request(line=f"GET /{'a' * 60_000} HTTP/1.1"), {400, 431}),
    "raw null in the URL": (lambda: request(line="GET /\x00 HTTP/1.1"), {400}),
    # pictures
    "PNG of 3.6 gigapixels": (lambda: request(form(image=png_bomb(60_000))), {413}),
    "PNG, many pixels in few bytes": (lambda: request(form(image=saved("PNG"))), {413}),
    "TIFF, many pixels in few bytes": (lambda: request(form(image=saved("TIFF", compression="tiff_deflate"))), {413}),
    "GIF of 4.3 gigapixels": (lambda: request(form(image=gif_bomb())), {413}),
    "PNG with a packed text": (lambda: request(form(image=text_bomb())), {413, 415}),
    "text as picture": (lambda: request(form(image=b"hello " * 100)), {415}),
    "PostScript as picture": (lambda: request(form(image=b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")), {415}),
    "SVG as picture": (lambda: request(form(image=b"<svg xmlns='http://www.w3.org/2000/svg'/>")), {415}),
    "empty picture": (lambda: request(form(image=b"")), {415}),
    "half a picture": (lambda: request(form(image=png()[:2000])), {415}),
    "picture of too many bytes": (lambda: request(form(image=bytes(LIMITS.max_bytes + 1))), {413}),
    # forms
    "no form": (lambda: request(b"{}", "Content-Type: application/json"), {415}),
    "huge JSON": (lambda: request(b"[" * 900_000, "Content-Type: application/json"), {415}),
    "no content type": (lambda: request(b"abc", "X-A: b"), {415}),
    "form without boundary": (lambda: request(form(), "Content-Type: multipart/form-data"), {400}),
    "form of junk": (lambda: request(b"\xff\x00--xyz junk" * 50), {400}),
    "form that does not end": (lambda: request(form()[:-30]), {400}),
    "form in another character set": (
        lambda: request(form(names=b"xn--" + b"9" * 50), f"{FORM}; charset=idna"), {415}
    ),
    "form in several character sets": (
        lambda: request(form(names=b"-" + b"b" * 90_000), f"{FORM}; charset=utf-8; charset=punycode"), {415}
    ),
    "too many fields": (lambda: request(form(*[part("names", b"a")] * 400)), {400}),
    "too many files": (lambda: request(form(*[part("image", b"a", file_name="b")] * 20)), {400}),
    "a part with huge headers": (
        lambda: request(f"--{BOUNDARY}\r\n{'X-A: ' + 'b' * 100_000}\r\n\r\n".encode() + form()), {400}
    ),
    "field that is not known": (lambda: request(form(part("path", b"/etc/passwd"))), {400}),
    "names as a file": (lambda: request(form(part("names", b"a", file_name="b"), names=None)), {400}),
    "picture as text": (lambda: request(part("image", b"abc") + part("names", b"a") + b"--xyz--\r\n"), {400}),
    # names and options
    "no names": (lambda: request(form(names=b" , \n")), {400}),
    "201 names": (lambda: request(form(names=",".join(map(str, range(201))).encode())), {400}),
    "a long name": (lambda: request(form(names=b"a" * 101)), {400}),
    "names with an escape sequence": (lambda: request(form(names=b"a\x1b[2Jb")), {400}),
    "names with a null byte": (lambda: request(form(names=b"a\x00b")), {400}),
    "names that are no text": (lambda: request(form(names=b"\xff\xfe\x90")), {400}),
    "negative threshold": (lambda: request(form(part("threshold", b"-0.1"))), {400}),
    "threshold not a number": (lambda: request(form(part("threshold", b"NaN"))), {400}),
    "endless threshold": (lambda: request(form(part("threshold", b"1e999"))), {400}),
    "threshold twice": (lambda: request(form(part("threshold", b"0.1"), part("threshold", b"0.2"))), {400}),
    "negative limit": (lambda: request(form(part("limit", b"-1"))), {400}),
    "limit of many digits": (lambda: request(form(part("limit", b"9" * 10_000))), {400}),
    "limit in other digits": (lambda: request(form(part("limit", "٣".encode()))), {400}),
    # HTTP
    "wrong method": (lambda: request(line="DELETE /api/detect HTTP/1.1"), {405}),
    "method that is none": (lambda: request(line="G\x01T / HTTP/1.1"), {400}),
    "trace": (lambda: request(line="TRACE / HTTP/1.1"), {405}),
    "no HTTP": (lambda: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), {400, CLOSED}),
    "HTTP/2 without asking": (lambda: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400, 421, CLOSED}),
    "huge header": (lambda: request(b"", f"X-A: {'b' * 200_000}"), {400, 431}),
    "many headers": (lambda: request(b"", *[f"X-{i}: b" for i in range(20_000)]), {400, 431, CLOSED}),
    "two lengths": (lambda: request(form(), "Content-Length: 3", FORM), {400}),
    "length and chunks": (lambda: request(b"0\r\n\r\n", "Transfer-Encoding: chunked", FORM), {400}),
    "negative length": (lambda: request(form(), length=-5), {400}),
    "length that is no number": (lambda: request(form(), length="1e3"), {400}),
    "length too long": (lambda: request(form(), length=len(form()) + 10), {408}),
    "length too short": (lambda: request(form(), length=60), {400}),
    "length of a terabyte": (lambda: request(b"abc", length=10**12), {413}),
    "chunks of junk": (lambda: chunked(b"zz\r\njunk\r\n"), {400, CLOSED}),
    "chunk of a huge size": (lambda: chunked(b"f" * 30 + b"\r\nabc"), {400, CLOSED}),
    "chunks of too many bytes": (lambda: chunked(40 * (b"10000\r\n" + bytes(65536) + b"\r\n")), {400, 413}),
    "header with a line break": (lambda: request(b"", "X-A: b\r\n c\x00d"), {400}),
    "upgrade": (lambda: request(b"", "Upgrade: websocket", "Connection: Upgrade", line="GET /ws HTTP/1.1"), {404}),
    # other sites
    "foreign host": (lambda: request(form(), host="evil.example"), {421}),
    "foreign host that begins alike": (lambda: request(form(), host="127.0.0.1.evil.example"), {421}),
    "host that is an address of elsewhere": (lambda: request(form(), host="10.1.2.3"), {421}),
    "no host": (lambda: b"POST /api/detect HTTP/1.0\r\n\r\n", {421}),
    "two hosts": (lambda: request(form(), "Host: evil.example", FORM), {400}),
    "foreign origin": (lambda: request(form(), "Origin: https://evil.example", FORM), {403}),
    "origin of a file": (lambda: request(form(), "Origin: null", FORM), {403}),
    "origin on another port": (lambda: request(form(), "Origin: http://127.0.0.1:1", FORM), {403}),
    "image of a foreign page": (
        lambda: request(b"", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors", line="GET /metrics HTTP/1.1"),
        {403},
    ),
    "asking for leave of another site": (
        lambda: request(b"", "Origin: https://evil.example", "Access-Control-Request-Method: POST",
                        line="OPTIONS /api/detect HTTP/1.1"), {403},
    ),
}  # fmt: skip


def send(port: int, content: bytes, *, within_s: float = 10.0) -> tuple[int, bytes]:
    """Send bytes, read until the server has answered or closed, and return the status and the whole answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=within_s) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the server may have answered before closing
            connection.sendall(content)
        return read_answer(connection)


def read_answer(connection: socket.socket) -> tuple[int, bytes]:
    answer = b""
    try:
        while b"\r\n\r\n" not in answer and (more := connection.recv(65536)):
            answer += more
        head, _, body = answer.partition(b"\r\n\r\n")
        declared = re.search(rb"^content-length: (\d+)", head, re.IGNORECASE | re.MULTILINE)
        length = int(declared[1]) if declared else 0
        while len(body) < length and (more := connection.recv(65536)):
            body += more
    except ConnectionResetError:
        head, body = answer, b""
    return int(head.split(b" ")[1]) if head.startswith(b"HTTP/") else CLOSED, body


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_request_is_refused_and_the_server_goes_on(served: Running, name: str):
    make, expected = HOSTILE[name]
    status, body = send(served.port, make())
    assert status in expected, body[:300]
    assert b"root:" not in body
    assert b"Traceback" not in body
    assert status < 500
    assert served.detect().status_code == 200


def resident_megabytes() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def test_memory_does_not_grow_with_hostile_requests(served: Running):
    contents = [make() for make, expected in HOSTILE.values() if 408 not in expected]
    for content in contents:
        send(served.port, content)
    before = resident_megabytes()
    for _ in range(3):
        for content in contents:
            send(served.port, content)
    assert resident_megabytes() - before < 40


def test_markup_in_names_comes_back_as_text(served: Running):
    name = "<img src=x onerror=alert(1)>"
    answer = served.detect(names=name)
    assert answer.status_code == 200
    (category,) = answer.json()["categories"]
    assert category["name"] == name
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.fixture(scope="module")
def hasty(service, settings) -> Iterator[Running]:
    with running(service, settings, head_seconds=0.4, body_seconds=0.4) as found:
        yield found


def closes_after(port: int, first: bytes, drip: bytes, *, most_s: float) -> float:
    """Return the seconds until the server ends a connection to which bytes are sent slowly."""
    start = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=0.1) as connection:
        connection.sendall(first)
        while time.monotonic() - start < most_s:
            try:
                if drip:
                    connection.sendall(drip)
                if connection.recv(65536) == b"":
                    break
            except TimeoutError:
                continue
            except (BrokenPipeError, ConnectionResetError):
                break
        else:
            pytest.fail(f"still open after {most_s} s")
    return time.monotonic() - start


@pytest.mark.parametrize(
    ("first", "drip"),
    [
        (b"", b""),
        (b"GET / HTTP/1.1\r\n", b"X-A: b\r\n"),
        (b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"G"),  # slow after a first answer
        (request(b"", length=500_000), b"-"),
        (chunked(b""), b"1\r\n-\r\n"),
        (request(b"", length=10**9), b"-" * 50),  # continues after the refusal
    ],
    ids=["silence", "slow headers", "slow second headers", "slow body", "slow chunks", "endless rest"],
)
def test_slow_connections_end_in_time(hasty: Running, first: bytes, drip: bytes):
    assert closes_after(hasty.port, first, drip, most_s=8.0) > 0.3
    assert hasty.client.get("/health").status_code == 200


def test_many_slow_connections_leave_room_for_a_request(served: Running):
    slow = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(100)]
    for connection in slow:
        connection.sendall(b"POST /api/detect HTTP/1.1\r\nHost: 127.0.0.1\r\n")
    assert served.detect().status_code == 200
    for connection in slow:
        connection.close()


def test_the_rest_of_a_refused_body_is_read_so_that_the_answer_arrives(served: Running):
    body = form(image=bytes(6 * LIMITS.max_bytes))
    answer = served.client.post("/api/detect", content=body, headers={"content-type": FORM.partition(": ")[2]})
    assert answer.status_code == 413
    assert answer.json() == {"error": "The request is larger than 1 megabytes."}
