"""The compiled plugin against a Felix that answers well, badly, slowly, half, or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from services.cni.build import build

Respond = Callable[[socket.socket, bytes], None]
ADD = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": "/run/netns/x", "CNI_IFNAME": "eth0"}


class FakeFelix:
    """Accepts on a unix socket, reads one whole request, hands it to `respond`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.requests: list[bytes] = []
        self.respond: Respond = lambda client, _: None
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.bind(str(path))
        self._server.listen(16)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def answer(self, status: int, body: bytes | str) -> None:
        body = body.encode() if isinstance(body, str) else body
        head = f"HTTP/1.0 {status} Whatever\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self.respond = lambda client, _: client.sendall(head.encode() + body)

    def answer_raw(self, data: bytes) -> None:
        self.respond = lambda client, _: client.sendall(data)

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(5)

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            with client:
                client.settimeout(10)
                request = b""
                while b"\r\n\r\n" not in request:
                    request += client.recv(65536)
                head, _, body = request.partition(b"\r\n\r\n")
                length = int(next(line for line in head.split(b"\r\n") if line.startswith(b"Content-Length:"))[15:])
                while len(body) < length:
                    body += client.recv(65536)
                self.requests.append(head + b"\r\n\r\n" + body)
                with contextlib.suppress(OSError):
                    self.respond(client, body)

    @property
    def body(self) -> dict[str, Any]:
        document = json.loads(self.requests[-1].partition(b"\r\n\r\n")[2])
        assert isinstance(document, dict)
        return document


@pytest.fixture(scope="module")
def shim() -> Path:
    return build()


@pytest.fixture
def felix(tmp_path: Path) -> Iterator[FakeFelix]:
    fake = FakeFelix(tmp_path / "cni.sock")
    yield fake
    fake.close()


def run(
    shim: Path, felix: FakeFelix | Path, stdin: bytes | str = '{"cniVersion":"0.4.0"}', **env: str
) -> subprocess.CompletedProcess[bytes]:
    path = felix if isinstance(felix, Path) else felix.path
    return subprocess.run(
        [shim],
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        env={"CALICO_CNI_SOCKET": str(path), "CALICO_CNI_TIMEOUT_S": "10", **ADD, **env},
        capture_output=True,
        timeout=60,
        check=False,
    )


def error(done: subprocess.CompletedProcess[bytes]) -> dict[str, Any]:
    """The CNI error object of a failed run; stdout has nothing else."""
    assert done.returncode == 1
    document = json.loads(done.stdout)
    assert set(document) == {"cniVersion", "code", "msg"}
    return dict(document)


# --- what goes to Felix ---------------------------------------------------------------------------------------------


def test_request_carries_cni_variables_only_and_stdin_as_text(shim: Path, felix: FakeFelix) -> None:
    felix.answer(200, "{}")
    assert run(shim, felix, '{"name":"n"}', CNI_ARGS='A="x";B=\\y', HOME="/root", CNIX="no").returncode == 0
    assert felix.requests[0].startswith(b"POST /cni HTTP/1.0\r\n")
    assert felix.body == {"env": {**ADD, "CNI_ARGS": 'A="x";B=\\y'}, "config": '{"name":"n"}'}


@pytest.mark.parametrize(
    "stdin",
    [
        "",
        'quotes " and \\ and / and \\n',
        "".join(map(chr, range(128))),
        "Grüße, 世界, 🐈, \u2028",
        '{"deep": "' + "x" * 1_000_000 + '"}',
        "\\" * 300_000 + '"' * 300_000,
    ],
    ids=["empty", "quotes", "control characters", "utf-8", "1 MB", "all escaped"],
)
def test_any_text_on_stdin_arrives_as_it_was(shim: Path, felix: FakeFelix, stdin: str) -> None:
    felix.answer(200, "{}")
    assert run(shim, felix, stdin).returncode == 0
    assert felix.body["config"] == stdin


def test_bytes_that_are_not_utf_8_pass_unchanged_for_felix_to_refuse(shim: Path, felix: FakeFelix) -> None:
    felix.answer(200, "{}")
    run(shim, felix, b"\xff\xfe\x80 caf\xe9")
    assert b"\xff\xfe\x80 caf\xe9" in felix.requests[0]


def test_called_as_calico_ipam_it_asks_for_ipam(shim: Path, felix: FakeFelix, tmp_path: Path) -> None:
    felix.answer(200, "{}")
    (tmp_path / "calico-ipam").symlink_to(shim)
    assert run(tmp_path / "calico-ipam", felix).returncode == 0
    assert felix.requests[0].startswith(b"POST /ipam HTTP/1.0\r\n")


# --- what comes back ------------------------------------------------------------------------------------------------


def test_result_is_printed_as_it_came_with_status_0(shim: Path, felix: FakeFelix) -> None:
    result = ' {"cniVersion": "1.0.0",\n "ips": [{"address": "10.65.0.2/32"}], "s": "Grüße \\u0000"}\n'
    felix.answer(200, result)
    done = run(shim, felix)
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, result, b"")


def test_answer_of_many_megabytes_is_printed_whole(shim: Path, felix: FakeFelix) -> None:
    result = '{"x":"' + "y" * 5_000_000 + '"}'
    felix.answer(200, result)
    assert run(shim, felix).stdout.decode() == result


def test_answer_in_single_bytes_is_put_together(shim: Path, felix: FakeFelix) -> None:
    def slowly(client: socket.socket, _: bytes) -> None:
        for byte in b"HTTP/1.1 200 OK\r\ncontent-length:  2\r\nConnection: close\r\n\r\n{}":
            client.sendall(bytes([byte]))

    felix.respond = slowly
    assert run(shim, felix).stdout == b"{}"


@pytest.mark.parametrize("status", [400, 500, 503, 201])
def test_error_object_of_felix_is_printed_with_status_1(shim: Path, felix: FakeFelix, status: int) -> None:
    text = '{"cniVersion":"0.4.0","code":7,"msg":"bad","details":"d"}'
    felix.answer(status, text)
    done = run(shim, felix)
    assert (done.returncode, done.stdout.decode()) == (1, text)


@pytest.mark.parametrize("command", ["DEL", "CHECK", "STATUS", "GC"])
def test_success_without_a_word_is_fine_where_the_specification_allows_it(
    shim: Path, felix: FakeFelix, command: str
) -> None:
    felix.answer(200, "")
    done = run(shim, felix, CNI_COMMAND=command)
    assert (done.returncode, done.stdout) == (0, b"")


GOOD = b"HTTP/1.0 200 OK\r\nContent-Length: 20\r\n\r\n"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "it closed the connection"),
        (b"HTTP/1.0 200", "not HTTP, or cut short"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n", "not HTTP, or cut short"),
        (b"SSH-2.0-OpenSSH\r\n\r\n{}", "not HTTP, or cut short"),
        (b"\0\0\0\0\r\n\r\n{}", "not HTTP, or cut short"),
        (b"HTTP/1.0 abc OK\r\nContent-Length: 2\r\n\r\n{}", "not HTTP, or cut short"),
        (b"HTTP/1.0 7 OK\r\nContent-Length: 2\r\n\r\n{}", "not HTTP, or cut short"),
        (b"HTTP/1.0 200 OK\r\n\r\n{}", "it has no length"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: x\r\n\r\n{}", "cut short"),
        (GOOD, "cut short"),
        (GOOD + b'{"cniVersion":"1.0', "cut short"),
        (GOOD + b'{"cniVersion":"1.0.0"}', "cut short"),  # longer than it said
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", "status 200 without a JSON object"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", "status 200 without a JSON object"),
        (b"HTTP/1.0 500 No\r\nContent-Length: 4\r\n\r\noops", "status 500 without a JSON object"),
        (b"HTTP/1.0 404 No\r\nContent-Length: 0\r\n\r\n", "status 404 without a JSON object"),
    ],
)
def test_malformed_answer_is_error_11_and_nothing_of_it_is_printed(
    shim: Path, felix: FakeFelix, data: bytes, why: str
) -> None:
    felix.answer_raw(data)
    said = error(run(shim, felix))
    assert said["code"] == 11
    assert said["cniVersion"] == "0.4.0"
    assert said["msg"] == f"the Calico agent of this node gave no proper answer: {why}"


def test_answer_before_the_request_was_read_is_taken(shim: Path, tmp_path: Path) -> None:
    text = '{"cniVersion":"1.0.0","code":6,"msg":"too large"}'
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(tmp_path / "s"))
        server.listen()

        def refuse() -> None:
            client, _ = server.accept()
            client.recv(10)
            client.sendall(f"HTTP/1.0 413 Big\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode())
            client.shutdown(socket.SHUT_RDWR)  # and the rest of the request meets a closed pipe
            while client.recv(1 << 20):
                pass
            client.close()

        thread = threading.Thread(target=refuse)
        thread.start()
        done = run(shim, tmp_path / "s", "x" * 5_000_000)
        thread.join()
    assert (done.returncode, done.stdout.decode()) == (1, text)


# --- Felix is away --------------------------------------------------------------------------------------------------


def test_missing_socket_is_error_11_that_names_it(shim: Path, tmp_path: Path) -> None:
    said = error(run(shim, tmp_path / "none.sock"))
    assert said["code"] == 11
    assert said["msg"] == f"the Calico agent of this node is not there: {tmp_path}/none.sock: No such file or directory"


def test_status_without_felix_is_error_50(shim: Path, tmp_path: Path) -> None:
    assert error(run(shim, tmp_path / "none.sock", CNI_COMMAND="STATUS"))["code"] == 50


def test_socket_nobody_listens_on_is_error_11(shim: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(tmp_path / "dead"))
    said = error(run(shim, tmp_path / "dead"))
    assert said["code"] == 11
    assert "Connection refused" in said["msg"]


def test_path_too_long_for_a_socket_is_error_11(shim: Path) -> None:
    said = error(run(shim, Path("/" + "x" * 5000)))
    assert said["code"] == 11
    assert said["msg"].startswith("the Calico agent of this node is not there: /xxx")


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.0 200 OK\r\nContent-Length: 9\r\n\r\n{"])
def test_silence_ends_with_error_11_at_the_deadline(shim: Path, felix: FakeFelix, sent: bytes) -> None:
    stop = threading.Event()

    def hang(client: socket.socket, _: bytes) -> None:
        client.sendall(sent)
        stop.wait(20)

    felix.respond = hang
    started = time.monotonic()
    try:
        said = error(run(shim, felix, CALICO_CNI_TIMEOUT_S="3"))
    finally:
        stop.set()
    assert said["code"] == 11
    assert "waiting for the Calico agent of this node: " in said["msg"]
    assert 2.9 < time.monotonic() - started < 15


def test_deadline_is_of_the_whole_call_and_not_of_each_read(shim: Path, felix: FakeFelix) -> None:
    stop = threading.Event()

    def drip(client: socket.socket, _: bytes) -> None:
        while not stop.wait(0.05):
            client.sendall(b" ")

    felix.respond = drip
    started = time.monotonic()
    try:
        assert error(run(shim, felix, CALICO_CNI_TIMEOUT_S="0.4"))["code"] == 11
    finally:
        stop.set()
    assert time.monotonic() - started < 30


def test_stdin_that_never_ends_meets_the_deadline_too(shim: Path, felix: FakeFelix) -> None:
    with subprocess.Popen(
        [shim],
        env={**ADD, "CALICO_CNI_SOCKET": str(felix.path), "CALICO_CNI_TIMEOUT_S": "0.2"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        said = json.loads(child.stdout.read())
        assert child.wait(10) == 1
    assert said["code"] == 11
    assert said["msg"].startswith("reading the network configuration: ")


# --- without Felix --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stdin", "version"), [('{"cniVersion":"0.3.1"}', "0.3.1"), ("", "1.1.0"), ("{}", "1.1.0")])
def test_version_is_answered_without_felix(shim: Path, tmp_path: Path, stdin: str, version: str) -> None:
    done = run(shim, tmp_path / "none.sock", stdin, CNI_COMMAND="VERSION")
    assert done.returncode == 0
    assert json.loads(done.stdout) == {
        "cniVersion": version,
        "supportedVersions": ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"],
    }


@pytest.mark.parametrize(
    ("stdin", "version"),
    [
        ('{"cniVersion":"0.3.0"}', "0.3.0"),
        ('{"name":"n",\n\t"cniVersion" : "1.1.0"}', "1.1.0"),
        ("", "1.0.0"),
        ('{"cniVersion":', "1.0.0"),
        ('{"cniVersion":3}', "1.0.0"),
        ('{"cniVersion":"', "1.0.0"),
        ('{"cniVersion":"1.0', "1.0.0"),
        ('{"cniVersion":"1.0\\"}', "1.0.0"),
        ('{"cniVersion":"' + "1." * 100 + '"}', "1.0.0"),
        ('\0\0{"cniVersion":"0.4.0"}', "0.4.0"),
    ],
)
def test_errors_speak_the_version_of_the_configuration_where_it_has_one(
    shim: Path, tmp_path: Path, stdin: str, version: str
) -> None:
    assert error(run(shim, tmp_path / "none.sock", stdin))["cniVersion"] == version


def test_without_a_command_it_says_who_should_run_it(shim: Path, tmp_path: Path) -> None:
    assert error(run(shim, tmp_path / "none.sock", CNI_COMMAND=""))["code"] == 4


def test_closed_stdin_and_stdout_do_not_crash_it(shim: Path, tmp_path: Path) -> None:
    environment = {**ADD, "CALICO_CNI_SOCKET": str(tmp_path / "none")}
    script = f"exec {shim} <&- >&-"
    assert subprocess.run(["sh", "-c", script], env=environment, check=False, timeout=20).returncode == 1


def test_many_at_once_are_all_served(shim: Path, felix: FakeFelix) -> None:
    felix.answer(200, '{"ok":1}')
    environment = {**os.environ, **ADD, "CALICO_CNI_SOCKET": str(felix.path), "CALICO_CNI_TIMEOUT_S": "30"}
    children = [
        subprocess.Popen([shim], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) for _ in range(60)
    ]
    assert [child.communicate(timeout=30)[0] for child in children] == [b'{"ok":1}'] * 60


def test_default_socket_can_be_compiled_in(tmp_path: Path) -> None:
    felix = FakeFelix(tmp_path / "own.sock")
    try:
        felix.answer(200, '{"own":1}')
        shim = build(socket=str(felix.path), cache=tmp_path / "cache")
        done = subprocess.run([shim], env=ADD, input=b"{}", capture_output=True, check=False, timeout=20)
        assert done.stdout == b'{"own":1}'
    finally:
        felix.close()
