"""Serve a detector: a page for the browser, and an HTTP API.

    ovd serve runs/quickstart
    ovd serve runs/quickstart --port 9000 --device cuda --batch 16

Open the address that it prints, drop a picture, type names. `POST /api/detect` does the same for programs; `/docs`
describes the API, and docs/serve.md has examples, limits and the setup behind a reverse proxy. Ctrl-C ends it.

Only programs on this machine can send requests, unless --host is an address of the network and --public confirms it.
It needs `pip install 'ovd[serve]'`.
"""

import argparse
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from ovd.commands.arguments import (
    add_detector_options,
    load_requested_detector,
    nonnegative_float,
    positive_float,
    positive_int,
)
from ovd.files import refuse_missing_run
from ovd.serve.hosts import host_name, is_address, is_loopback, known_hosts
from ovd.serve.limits import Limits
from ovd.serve.settings import Settings

_DEFAULTS = Limits()
_NUMBERS: tuple[tuple[str, Callable[[str], float], float, str], ...] = (
    ("--batch", positive_int, Settings.batch, "maximum number of images in a batch"),
    ("--gather-ms", nonnegative_float, Settings.gather_ms, "time that a batch waits for more images, in ms"),
    ("--megabytes", positive_float, _DEFAULTS.megabytes, "maximum size of a picture file, in MB"),
    ("--megapixels", positive_float, _DEFAULTS.megapixels, "maximum size of a picture, in million pixels"),
    ("--names", positive_int, _DEFAULTS.names, "maximum number of names in a request"),
    (
        "--waiting",
        positive_int,
        _DEFAULTS.waiting,
        "maximum number of waiting requests; more are refused with status 503",
    ),
    ("--seconds", positive_float, _DEFAULTS.answer_seconds, "time limit of a request, in seconds"),
)
"""Options that are numbers: name, parser, default, and help."""
_PACKAGES = ("starlette", "uvicorn", "python_multipart", "prometheus_client")
"""Packages that `ovd[serve]` installs, by their import names."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder or checkpoint of a trained detector")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s, for this machine alone)"
    )
    parser.add_argument(
        "--port", type=port_number, default=8000, help="port to listen on; 0 chooses a free one (default: %(default)s)"
    )
    parser.add_argument(
        "--public",
        action="store_true",
        help="accept requests from other machines; required if --host is an address of the network",
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        type=name_of_host,
        metavar="NAME",
        help="further host name of this server in requests, such as that of a reverse proxy; can be repeated",
    )
    add_detector_options(parser)
    for option, parse, default, words in _NUMBERS:
        parser.add_argument(option, type=parse, default=default, help=f"{words} (default: %(default)s)")
    return parser


def port_number(text: str) -> int:
    """Parse --port."""
    if not text.isdecimal() or int(text) >= 2**16:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port; give a number from 0 to {2**16 - 1}")
    return int(text)


def name_of_host(text: str) -> str:
    """Parse --allow-host: the name or address in the Host header of a request, without its port."""
    if not is_address(text) and (not text or host_name(text) != text.lower()):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a host name; write the name alone, such as detect.example.org"
        )
    return text


def check_host(host: str, *, public: bool) -> None:
    """Check that a host that other machines can reach is confirmed by --public.

    Raises:
        ValueError: it is not, or the host is neither localhost nor an address.
    """
    if host != "localhost" and not is_address(host):
        raise ValueError(f"--host {host} is not an IP address; give one such as 127.0.0.1 or 0.0.0.0")
    if not is_loopback(host) and not public:
        raise ValueError(
            f"--host {host} accepts requests from other machines; add --public to allow that (see docs/serve.md)"
        )


def main() -> None:
    parser = _parser()
    arguments = parser.parse_args()
    check_host(arguments.host, public=arguments.public)
    if missing := [package for package in _PACKAGES if find_spec(package) is None]:
        raise ValueError(f"ovd serve needs {', '.join(missing)}: pip install 'ovd[serve]'")
    refuse_missing_run(arguments.run)
    from ovd.serve.app import build_app
    from ovd.serve.detection_service import DetectionService
    from ovd.serve.server import address, open_socket, run_server

    limits = Limits(
        megabytes=arguments.megabytes,
        megapixels=arguments.megapixels,
        names=arguments.names,
        waiting=arguments.waiting,
        answer_seconds=arguments.seconds,
    )
    open_socket(arguments.host, arguments.port).close()  # a taken port is refused before the detector is loaded
    trained = load_requested_detector(arguments)
    service = DetectionService(trained, size=arguments.size)
    service.warm_up()
    settings = Settings(
        model=arguments.run.resolve().name,
        threshold=service.inference.shown_threshold,
        hosts=known_hosts(arguments.host, more=arguments.allow_host),
        any_address=not is_loopback(arguments.host),
        batch=arguments.batch,
        gather_ms=arguments.gather_ms,
        limits=limits,
    )
    write_line = partial(print, flush=True)
    listening = open_socket(arguments.host, arguments.port)
    write_line(f"{arguments.run} on {service.inference.device}: {address(listening)} (Ctrl-C ends)")
    run_server(build_app(service, settings, write_line=write_line), listening, limits)
    write_line("stopped")
