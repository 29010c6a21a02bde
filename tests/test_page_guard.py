"""Which requests the page lets in. Needs neither gradio nor a browser: it is called as a server calls it."""

import asyncio
import json
import os
import socket

import pytest

from clipfsar.page import guard
from clipfsar.page.arguments import PageArguments
from clipfsar.page.guard import Guard, remove_unclaimed, stored_bytes

HOST = (b"host", b"localhost:7860")


def ask(folder, path="/", method="GET", headers=(HOST,), parts=(b"",), hosts=("localhost",), wait=0.0):
    """Status, headers and body of the answer; a request that is let in is answered with 200 and its own body."""

    async def app(scope, receive, send):
        body, more = b"", True
        while more:
            part = await receive()
            body, more = body + part.get("body", b""), part.get("more_body", False)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    pending, sent = list(parts), []

    async def receive():
        await asyncio.sleep(wait)
        body = pending.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(pending)}

    async def send(part):
        sent.append(part)

    scope = {"type": "http", "method": method, "path": path, "headers": list(headers)}
    asyncio.run(Guard(app, hosts, folder)(scope, receive, send))
    start, *rest = sent
    return start["status"], dict(start["headers"]), b"".join(part["body"] for part in rest)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *((host, 200) for host in ("localhost:7860", "127.0.0.1:7860", "[::1]:7860", "LOCALHOST", "my.site")),
        *((host, 403) for host in ("evil.example", "localhost.evil.example", "", "[::1")),
    ],
)
def test_foreign_hosts_are_refused(tmp_path, host, status):
    hosts = ("localhost", "My.Site")
    assert ask(tmp_path, headers=[(b"host", host.encode())], hosts=hosts)[0] == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [("http://localhost:7860", 200), ("http://localhost:7861", 403), ("http://evil.example", 403), ("null", 403)],
)
def test_foreign_origins_are_refused(tmp_path, origin, status):
    assert ask(tmp_path, headers=[HOST, (b"origin", origin.encode())])[0] == status


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("GET", f"/gradio_api/{name}") for name in ("info", "openapi.json", "proxy=http://a", "runs", "vibe-code/")),
        *(("GET", path) for path in ("/monitoring", "/docs", "/file/a", "/assets/../gradio_api/info")),
        *(("POST", f"/gradio_api/{name}") for name in ("run/predict", "api/predict", "call/a", "process_recording")),
        *(("POST", path) for path in ("/", "/config", "/login", "/gradio_api/queue/data")),
        *((method, "/gradio_api/queue/join") for method in ("GET", "PUT", "DELETE", "OPTIONS")),
    ],
)
def test_an_endpoint_that_the_page_does_not_use_is_not_there(tmp_path, method, path):
    assert ask(tmp_path, path, method)[0] == 404


@pytest.mark.parametrize("path", ["/", "/config", "/assets/index.js", "/theme.css", "/gradio_api/queue/data"])
def test_what_the_page_uses_is_let_in_and_nothing_else_is_loaded(tmp_path, path):
    status, headers, _ = ask(tmp_path, path)
    assert status == 200
    assert headers[b"content-security-policy"].startswith(b"default-src 'self'")


def test_a_message_comes_through_whole_and_one_that_names_an_address_as_a_file_does_not(tmp_path):
    message = json.dumps({"data": [None, {"path": "/tmp/a.mp4", "url": "http://localhost:7860/a"}]}).encode()
    parts = [message[:7], message[7:]]
    assert ask(tmp_path, "/gradio_api/queue/join", "POST", parts=parts)[::2] == (200, message)
    for message in ({"data": [[{"path": "http://evil.example/a.mp4"}]]}, {"path": "file:///etc/passwd"}):
        assert ask(tmp_path, "/gradio_api/queue/join", "POST", parts=[json.dumps(message).encode()])[0] == 400
    for text in (b"{", b"[" * 100_000, b"\xff", b'{"data": NaN}', b"[-Infinity]"):
        assert ask(tmp_path, "/gradio_api/queue/join", "POST", parts=[text])[0] == 400


@pytest.mark.parametrize(
    ("path", "name"), [("/gradio_api/upload", "MAX_UPLOAD_BYTES"), ("/gradio_api/queue/join", "MAX_MESSAGE_BYTES")]
)
def test_requests_have_a_largest_size_announced_or_not(tmp_path, path, name, monkeypatch):
    monkeypatch.setattr(guard, name, 10)
    announced = [HOST, (b"content-length", b"11")]
    assert ask(tmp_path, path, "POST", announced)[0] == 413
    assert ask(tmp_path, path, "POST", parts=[b"[1,2,3,4", b",5,6]"])[0] == 413
    assert ask(tmp_path, path, "POST", parts=[b"[1,2,", b"3,4]"])[0] == 200
    assert ask(tmp_path, path, "POST", [HOST, (b"content-length", b"-1")])[0] == 413


@pytest.mark.parametrize("path", ["/gradio_api/upload", "/gradio_api/queue/join"])
def test_requests_have_a_longest_time(tmp_path, path, monkeypatch):
    monkeypatch.setattr(guard, "SECONDS_PER_BODY", 0.1)
    assert ask(tmp_path, path, "POST", parts=[b"1"] * 50, wait=0.02)[0] == 408


def test_an_upload_that_is_broken_off_ends_quietly(tmp_path):
    """Otherwise a closed tab would print an error of many lines in the terminal."""
    parts, sent = [{"type": "http.request", "body": b"1", "more_body": True}, {"type": "http.disconnect"}], []

    async def app(scope, receive, send):
        while True:
            assert (await receive())["type"] == "http.request"

    async def receive():
        return parts.pop(0)

    async def send(part):
        sent.append(part)

    scope = {"type": "http", "method": "POST", "path": "/gradio_api/upload", "headers": [HOST]}
    asyncio.run(Guard(app, ["localhost"], tmp_path)(scope, receive, send))
    assert sent[0]["status"] == 400


def test_uploads_have_a_largest_size_together(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.mp4").write_bytes(bytes(8))
    monkeypatch.setattr(guard, "MAX_STORED_BYTES", 10)
    assert stored_bytes(tmp_path) == 8
    assert ask(tmp_path, "/gradio_api/upload", "POST", [HOST, (b"content-length", b"3")])[0] == 507
    assert ask(tmp_path, "/gradio_api/upload", "POST", [HOST, (b"content-length", b"2")], [b"ab"])[0] == 200


def test_files_that_nobody_holds_are_removed_after_minutes(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    files = [tmp_path / "a" / name for name in ("old.mp4", "held.mp4")]
    for path in files:
        path.touch()
    assert remove_unclaimed(tmp_path, {str(files[1])}) == []
    later = os.stat(files[0]).st_ctime + 601
    monkeypatch.setattr(guard.time, "time", lambda: later)
    assert remove_unclaimed(tmp_path, {str(files[1])}) == [files[0]]
    assert [path.exists() for path in files] == [False, True]


def test_empty_folders_are_removed_after_minutes(tmp_path, monkeypatch):
    for name in ("old", "full"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "held.mp4").touch()
    now = os.stat(tmp_path / "full" / "held.mp4").st_ctime
    monkeypatch.setattr(guard.time, "time", lambda: now + 590)
    remove_unclaimed(tmp_path, ())
    assert (tmp_path / "old").exists()
    monkeypatch.setattr(guard.time, "time", lambda: now + 610)
    remove_unclaimed(tmp_path, {str(tmp_path / "full" / "held.mp4")})
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    assert remove_unclaimed(tmp_path / "missing", ()) == []


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_port_that_cannot_be_is_refused(port):
    with pytest.raises(ValueError, match=f"--port {port} must be between 1 and 65535"):
        PageArguments(model="m", port=port)


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan")])
def test_a_time_limit_is_finite(seconds):
    with pytest.raises(ValueError, match=r"--seconds_per_video .* must be greater than 0, and not infinite"):
        PageArguments(model="m", seconds_per_video=seconds)


def test_an_address_where_nothing_can_listen_is_named_before_a_model_is_loaded(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=rf"--port {port} cannot be used \(Address already in use\): choose another"):
            PageArguments(model=str(tmp_path), port=port).check_files()
    with pytest.raises(OSError, match=r"--host 192\.0\.2\.77 cannot be used"):
        PageArguments(model=str(tmp_path), host="192.0.2.77", port=port).check_files()
    with pytest.raises(OSError, match=r"--host no\.invalid: there is no such address"):
        PageArguments(model=str(tmp_path), host="no.invalid").check_files()


def test_examples_are_a_folder(tmp_path):
    (tmp_path / "a.mp4").touch()
    with pytest.raises(NotADirectoryError, match=r"a\.mp4 is a file: give a folder with one folder per class"):
        PageArguments(model="m", examples=str(tmp_path / "a.mp4")).check_files()


def test_a_space_and_named_hosts_are_let_in(monkeypatch):
    monkeypatch.setenv("SPACE_HOST", "me-page.hf.space")
    arguments = PageArguments(model="m", hosts=["page.example"], host="here")
    assert arguments.served_as == ["localhost", "here", "me-page.hf.space", "page.example"]
