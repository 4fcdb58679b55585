"""The `ovd serve` command: its address, its requirements, its start and its end."""

import importlib.util
import signal
import subprocess
import sys

import httpx2
import pytest
from small_run import small_config
from small_server import png

import ovd.commands.serve as command
from ovd.jobs.train import train_from_config
from ovd.serve.guard import Guard
from ovd.serve.hosts import host_name, is_loopback, known_hosts
from ovd.serve.server import address, open_socket


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.7", "::"])
def test_other_machines_are_let_in_on_purpose_only(host):
    with pytest.raises(ValueError, match="add --public"):
        command.check_host(host, public=False)
    command.check_host(host, public=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9", "::1", "localhost"])
def test_this_machine_needs_no_leave(host):
    assert is_loopback(host)
    command.check_host(host, public=False)


@pytest.mark.parametrize("host", ["detect.example.org", "10.0.0.7", "2001:db8::1"])
def test_names_and_addresses_may_be_allowed(host):
    assert command.name_of_host(host) == host


def test_a_host_that_is_no_address_is_refused():
    with pytest.raises(ValueError, match="is not an IP address"):
        command.check_host("example.org", public=True)


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("localhost:80", "localhost"),
        ("[::1]:80", "::1"),
        ("[FE80::A]:80", "fe80::a"),
        ("LOCALHOST", "localhost"),
        ("", ""),
        ("[::1", "::1"),
    ],
)
def test_the_name_in_a_host_header(header, name):
    assert host_name(header) == name


@pytest.mark.parametrize(
    ("host", "header", "passes"),
    [
        ("127.0.0.1", "localhost:8000", True),
        ("127.0.0.1", "10.0.0.7:8000", False),
        ("127.0.0.1", "detect.example.org", True),
        ("127.0.0.1", "evil.example", False),
        ("0.0.0.0", "10.0.0.7:8000", True),
        ("0.0.0.0", "[fe80::1]:8000", True),
        ("0.0.0.0", "evil.example", False),
        ("0.0.0.0", "1.2.3.4.evil.example", False),
    ],
)
def test_names_that_a_server_goes_by(host, header, passes):
    reached = []

    async def app(scope, receive, send):
        reached.append(scope["path"])

    async def send(message):
        statuses.append(message.get("status"))

    async def receive():
        return {"type": "http.disconnect"}

    statuses: list[int | None] = []
    guard = Guard(
        app,
        hosts=known_hosts(host, more=["detect.example.org"]),
        any_address=not is_loopback(host),
        head_bytes=1000,
    )
    scope = {"type": "http", "path": "/", "raw_path": b"/", "query_string": b"", "method": "GET"}
    scope["headers"] = [(b"host", header.encode())]
    coroutine = guard(scope, receive, send)
    with pytest.raises(StopIteration):
        coroutine.send(None)  # the guard never waits here
    assert (reached == ["/"]) == passes
    assert (421 in statuses) != passes


def test_a_port_that_is_taken_is_said():
    with open_socket("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        assert address(first) == f"http://127.0.0.1:{port}"
        with pytest.raises(ValueError, match=rf"cannot listen on 127\.0\.0\.1 port {port}: .*--port"):
            open_socket("127.0.0.1", port)


def test_a_taken_port_is_refused_before_the_detector_is_loaded(monkeypatch, tmp_path):
    with open_socket("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        monkeypatch.setattr(sys, "argv", ["ovd serve", str(tmp_path), "--port", str(port)])  # a folder without a run
        with pytest.raises(ValueError, match=rf"cannot listen on 127\.0\.0\.1 port {port}: .*--port"):
            command.main()


def test_missing_packages_are_named_with_what_installs_them(monkeypatch, tmp_path):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "uvicorn" else find_spec(name))
    monkeypatch.setattr(sys, "argv", ["ovd serve", str(tmp_path)])
    with pytest.raises(ValueError, match=r"ovd serve needs uvicorn: pip install 'ovd\[serve\]'"):
        command.main()


@pytest.mark.slow
def test_help_needs_none_of_them():
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('starlette', 'uvicorn', 'python_multipart', 'prometheus_client')))\n"
        "sys.argv = ['ovd serve', '--help']\n"
        "import ovd.commands.serve as command\n"
        "command.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "ovd serve runs/quickstart" in done.stdout


@pytest.mark.parametrize(
    "words",
    [
        ["--batch", "0"],
        ["--megabytes", "-1"],
        ["--megapixels", "nan"],
        ["--seconds", "0"],
        ["--seconds", "inf"],
        ["--gather-ms", "-1"],
        ["--port", "70000"],
        ["--port", "-1"],
        ["--allow-host", "http://detect.example.org"],
        ["--allow-host", "detect.example.org:443"],
    ],
)
def test_options_that_make_no_server_are_refused(words, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["ovd serve", str(tmp_path), *words])
    with pytest.raises(SystemExit) as stopped:
        command.main()
    assert stopped.value.code == 2
    assert f"argument {words[0]}: '{words[1]}' is not" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_is_served_until_ctrl_c(miniature_world, tmp_path):
    run = tmp_path / "run"
    train_from_config(small_config(run, miniature_world, train={"steps": 2}), evaluate=False)
    words = [sys.executable, "-m", "ovd", "serve", str(run), "--port", "0"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    url = line.partition(": ")[2].split()[0]
    answer = httpx2.post(f"{url}/api/detect", files={"image": png()}, data={"names": "anchor"}, timeout=60)
    assert answer.status_code == 200
    assert httpx2.get(f"{url}/api/info").json()["model"] == "run"
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=20)
    assert process.returncode == 0
    assert errors == ""
    told = output.splitlines()
    assert "200  POST  /api/detect" in told[0]
    assert told[-1] == "stopped"
