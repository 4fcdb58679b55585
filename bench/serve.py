"""Measure a server's detection under load against plain batched detection in the same run.

    python bench/serve.py                                        # runs/quickstart, its example picture
    python bench/serve.py --run RUN --images FOLDER --seconds 60

Clients send requests over HTTP in several rounds, each as soon as it has its last answer. Between the rounds this
process does the same work without a server: it decodes the same pictures and detects in batches of the same size. Both
rates, the errors, and the server's memory at the start, after the first round and at the end are printed.
"""

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from itertools import count
from pathlib import Path

import torch
from measured import save

from ovd.build.detector import resolve_device
from ovd.build.text import evaluation_text
from ovd.build.trained import build_inference, load_detector
from ovd.data.loading.padding import pad_images
from ovd.inference import ImageBatch
from ovd.model.query_texts import QueryTexts
from ovd.precision import describe_machine
from ovd.serve.detection_service import DetectionService

NAMES = ("keyboard", "anchor", "a cat face", "umbrella", "coffee cup")
BOUNDARY = "a9f3c1"
MAX_PIXELS = 64_000_000
GROWTH_ALLOWED = 0.03
"""Largest growth of the server's memory after the first round, as a share of it."""


class Clients:
    """Clients of one server."""

    def __init__(self, port: int, bodies: list[bytes], number: int):
        self.port = port
        self.bodies = bodies
        self.number = number
        self.statuses: Counter[int | str] = Counter()
        self.seconds: list[float] = []

    def ask_for(self, seconds: float) -> float:
        """Send requests from all clients for some seconds, and return the answers per second."""
        end, before, turn = time.perf_counter() + seconds, self.statuses[200], count()
        threads = [threading.Thread(target=self._one, args=(end, turn)) for _ in range(self.number)]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return (self.statuses[200] - before) / (time.perf_counter() - start)

    def _one(self, end: float, turn: "count[int]") -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
        while (start := time.perf_counter()) < end:
            try:
                connection.request("POST", "/api/detect", self.bodies[next(turn) % len(self.bodies)], headers)
                answer = connection.getresponse()
                content = json.loads(answer.read())
                assert answer.status != 200 or len(content["categories"]) == len(NAMES)
                status: int | str = answer.status
            except (OSError, http.client.HTTPException, ValueError) as error:
                status = type(error).__name__
                connection.close()
            self.seconds.append(time.perf_counter() - start)
            self.statuses[status] += 1
        connection.close()


def body_of(picture: bytes) -> bytes:
    """Return the body of a request with a picture and the names."""
    head = f"--{BOUNDARY}\r\nContent-Disposition: form-data; name=".encode()
    return (
        head + b'"image"; filename="a.jpg"\r\n\r\n' + picture + b"\r\n"
        + head + b'"names"\r\n\r\n' + ",".join(NAMES).encode() + f"\r\n--{BOUNDARY}--\r\n".encode()
    )  # fmt: skip


def resident_megabytes(process: int) -> float:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024, 1)


class Plain:
    """The same work without a server, decoding and detection, batch after batch."""

    def __init__(self, run: Path, pictures: list[bytes], batch: int):
        trained = load_detector(run)
        self.service = DetectionService(trained)
        self.inference = build_inference(trained)
        self.queries = QueryTexts(evaluation_text(trained.config, trained.clip, NAMES))
        self.pictures = pictures
        self.batch = batch

    def detect_for(self, seconds: float) -> float:
        """Detect for some seconds, and return the pictures per second."""
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            files = [self.pictures[(done + i) % len(self.pictures)] for i in range(self.batch)]
            prepared = [self.service.prepare(content, max_pixels=MAX_PIXELS) for content in files]
            images, sizes = pad_images(
                [picture.pixels for picture in prepared], divisor=self.inference.detector.size_divisor
            )
            original_sizes = torch.tensor([picture.shape for picture in prepared])
            self.inference.detect(self.queries, ImageBatch(images, sizes, original_sizes))
            done += self.batch
        return done / (time.perf_counter() - start)


def start_server(run: Path, batch: int) -> tuple[subprocess.Popen[str], int]:
    """Start a server in a process of its own, and return the process and its port."""
    command = [sys.executable, "-m", "ovd", "serve", str(run), "--port", "0", "--batch", str(batch)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    threading.Thread(target=process.stdout.read, daemon=True).start()  # else its lines would fill the pipe
    return process, int(line.partition("http://127.0.0.1:")[2].split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--images", type=Path, help="folder of JPEG files (default: the run's example.jpg)")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60.0, help="of load in all, after the first round")
    parser.add_argument("--rounds", type=int, default=6)
    arguments = parser.parse_args()
    files = [arguments.run / "example.jpg"]
    if arguments.images is not None:
        files = sorted(arguments.images.rglob("*.jpg"))[:64]
    pictures = [file.read_bytes() for file in files]
    plain = Plain(arguments.run, pictures, arguments.batch)
    process, port = start_server(arguments.run, arguments.batch)
    try:
        clients = Clients(port, list(map(body_of, pictures)), arguments.clients)
        seconds = arguments.seconds / arguments.rounds
        memory = {"start": resident_megabytes(process.pid)}
        clients.ask_for(seconds)
        plain.detect_for(seconds / 2)
        memory["warm"] = resident_megabytes(process.pid)
        clients.seconds.clear()
        rates: dict[str, list[float]] = {"served": [], "plain": []}
        for _ in range(arguments.rounds):
            rates["served"].append(round(clients.ask_for(seconds), 2))
            rates["plain"].append(round(plain.detect_for(seconds), 2))
            print(f"served {rates['served'][-1]}, plain {rates['plain'][-1]} pictures per second", flush=True)
        memory["end"] = resident_megabytes(process.pid)
    finally:
        process.terminate()
        process.wait(20)
    ratios = [served / alone for served, alone in zip(rates["served"], rates["plain"], strict=True)]
    errors = {str(status): number for status, number in clients.statuses.items() if status != 200}
    waits = sorted(clients.seconds)
    device = resolve_device(load_detector(arguments.run).config)
    figures = {
        "machine": describe_machine(device),
        "settings": {name: str(value) for name, value in vars(arguments).items()},
        "load_average": os.getloadavg(),
        "answers": clients.statuses[200],
        "errors": errors,
        "ratio": {"throughput": round(statistics.median(ratios), 3)},
        "pictures_per_second": rates,
        "seconds": {"median": round(waits[len(waits) // 2], 3), "95 %": round(waits[int(0.95 * len(waits))], 3)},
        "megabytes": memory,
    }
    print(json.dumps(figures, indent=1))
    save("serve", figures, device)
    if errors or memory["end"] > memory["warm"] * (1 + GROWTH_ALLOWED):
        raise SystemExit("the server answered with errors, or its memory grew")


if __name__ == "__main__":
    main()
