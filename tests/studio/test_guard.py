"""On this machine alone: nothing is asked from elsewhere, and nothing served but what the page offers."""

import http.client
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import App
from gradio_client import Client

from studio import guard


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},  # a name that was made to lead to 127.0.0.1
        {"Host": "127.0.0.1.evil.example:80"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},  # another program's page on this machine
        {"Origin": "http://localhost"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
    ],
)
def test_a_page_from_elsewhere_can_do_nothing(small_app: App, headers: dict[str, str]) -> None:
    with httpx.Client(base_url=small_app.address, headers=headers) as client:
        assert client.get("/").status_code == 403
        assert client.get("/v1/models").status_code == 403
        assert client.post("/v1/chat/completions", json={"model": "base:smollm2-135m"}).status_code == 403
        assert client.post("/gradio_api/call/start", content=b'{"data": []}').status_code == 403
        assert client.post("/gradio_api/upload", files={"files": b"x"}).status_code == 403


def test_its_own_page_can(small_app: App) -> None:
    own = {"Origin": small_app.address, "Sec-Fetch-Site": "same-origin"}
    said = httpx.get(f"{small_app.address}/", headers=own)
    assert said.status_code == 200 and "https://" not in said.headers["content-security-policy"]
    assert said.headers["x-content-type-options"] == "nosniff" and said.headers["x-frame-options"] == "DENY"
    followed = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}  # a link that someone sent
    assert httpx.get(f"{small_app.address}/?c=1", headers=followed).status_code == 200


def test_no_file_is_served_but_what_was_put_there(small_app: App, small_runs: list[Any]) -> None:
    (small_app.runs / "kept.sqlite").write_bytes(b"SQLite format 3")
    root = Path(__file__).resolve().parents[2]
    paths = [small_runs[0].path / "config.json", small_app.runs / "kept.sqlite", small_app.log, root / "app.py"]
    paths += [root / ".git" / "config", "app.py", "../../etc/passwd", "/etc/passwd", "/proc/self/environ"]
    with httpx.Client(base_url=small_app.address) as client:
        for path in paths:
            for route in ("file=", "file/"):
                assert client.get(f"/gradio_api/{route}{path}").status_code in (403, 404), path
        for address in (small_app.address, "http://169.254.169.254/", "HTTP://127.0.0.1:1"):
            assert client.get(f"/gradio_api/file={address}").status_code == 403
        # What is uploaded comes back to be saved, never as a page of this server.
        (kept,) = client.post("/gradio_api/upload", files={"files": ("x.html", b"<script>1</script>")}).json()
        back = client.get(f"/gradio_api/file={kept}")
        assert back.headers["content-disposition"].startswith("attachment")
        assert back.headers["content-type"] == "application/octet-stream"
        assert Path(kept).parents[1].stat().st_mode & 0o077 == 0  # and no other user of the machine reads it


def test_no_event_takes_a_file_by_its_path_or_address(small_app: App) -> None:
    client = Client(small_app.address, verbose=False)
    takes_file = next(d for d in client.config["dependencies"] if _has_file(client.config, d))
    for path in ("http://127.0.0.1:1/rows.jsonl", "https://example.org/rows.jsonl", "/etc/passwd"):
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        data = [file if _is_file(client.config, i) else None for i in takes_file["inputs"]]
        asked = {"data": data, "fn_index": takes_file["id"], "session_hash": f"s{abs(hash(path))}"}
        with httpx.Client(base_url=small_app.address, timeout=20) as direct:
            said = direct.post("/gradio_api/queue/join", json=asked)
            if "://" in path:
                assert said.status_code == 403 and "upload the file" in said.text
                continue
            with direct.stream("GET", "/gradio_api/queue/data", params={"session_hash": asked["session_hash"]}) as news:
                last = next(line for line in news.iter_lines() if "process_completed" in line)
        assert json.loads(last.removeprefix("data:"))["success"] is False
        assert "root:" not in last


def _is_file(config: Any, component: int) -> bool:
    return any(c["id"] == component and c["type"] == "file" for c in config["components"])


def _has_file(config: Any, dependency: Any) -> bool:
    return dependency["backend_fn"] and any(_is_file(config, i) for i in dependency["inputs"])


def test_too_much_is_refused_before_it_is_read(small_app: App) -> None:
    for kind, length in (("application/json", guard.MOST_JSON + 1), ("multipart/form-data", guard.MOST_UPLOAD + 1)):
        connection = http.client.HTTPConnection("127.0.0.1", small_app.port, timeout=10)
        connection.putrequest("POST", "/gradio_api/upload")
        connection.putheader("Content-Type", kind)
        connection.putheader("Content-Length", str(length))
        connection.endheaders()
        assert connection.getresponse().status == 413
        connection.close()
