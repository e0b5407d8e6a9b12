"""Pretrained weights by name: from a hub (a small one on loopback), from its cache, or told how to get them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save

from warmstart.errors import UserError
from warmstart.models.zoo import create

GOOD, GONE, DOWN, CUT, PORTAL, OTHER = (
    "test_vit",
    "test_vit2",
    "test_resnet",
    "test_convnext",
    "test_efficientnet",
    "test_vit3",
)
UNASKED = "test_coatnet"
COMMIT = "0123456789abcdef0123456789abcdef01234567"

# One process for everything that needs the server: importing torch and timm costs seconds.
# Its client waits seconds between tries, which a test need not do.
STEPS = """
import contextlib, io, json, sys, time
import torch
from warmstart.cli import main
from warmstart.config.schema import ModelConfig
from warmstart.models.build import build

time.sleep = lambda seconds: None

def load(name, weights=None):
    built = build(ModelConfig(name=f"timm:{name}", weights=weights), {}, ("ant", "bee"), seed=0)
    state = {k: v for k, v in built.module.state_dict().items() if not k.startswith("head.")}
    return {"sum": sum(v.double().sum().item() for v in state.values()), "source": built.source["path"]}

def refused(name):
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        code = main(["finetune", "--data", sys.argv[2], "--model", f"timm:{name}", "--dry-run"])
    return {"code": code, "text": " ".join(err.getvalue().split())}

print(json.dumps([refused(a) if what == "refused" else load(a, *rest) for what, a, *rest in json.loads(sys.argv[1])]))
"""


def weights(name: str) -> dict[str, torch.Tensor]:
    import timm

    torch.manual_seed(sum(map(ord, name)))
    module: torch.nn.Module = timm.create_model(name, num_classes=1000)
    return module.state_dict()


class Hub(BaseHTTPRequestHandler):
    """Answers as huggingface.co does for `REPOSITORY/resolve/main/FILE`; what it serves is its server's."""

    protocol_version = "HTTP/1.1"
    server: HubServer

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        self.server.log.append(f"{self.command} {self.path}")
        name = self.path.removeprefix("/timm/").partition(".")[0]
        if name == DOWN:
            return self._send(500, b"internal error", with_body)
        file = self.path.rpartition("/")[2]
        if name not in self.server.files or file != "model.safetensors":
            code = "EntryNotFound" if name in self.server.files else "RepoNotFound"
            return self._send(404, b"not found", with_body, {"X-Error-Code": code})
        body = self.server.files[name]
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{name}"', "Accept-Ranges": "bytes"}
        return self._send(200, body, with_body, headers, cut=name == CUT)

    def _send(
        self,
        status: int,
        body: bytes,
        with_body: bool,
        headers: dict[str, str] | None = None,
        cut: bool = False,
    ) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = cut

    def log_message(self, *args: Any) -> None: ...


class HubServer(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Hub)
        self.log: list[str] = []
        self.files = {name: save(weights(name)) for name in (GOOD, CUT)}
        self.files[PORTAL] = b"<html>please log in to the hotel's network</html>"
        self.files[OTHER] = save({"fc.weight": torch.zeros(2, 2)})


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hub")
    for name in ("ant", "bee"):
        (root / "data" / name).mkdir(parents=True)
        for number in range(8):
            Image.new("L", (16, 16), number).save(root / "data" / name / f"{number}.png")
    return root


def run(place: Path, steps: list[tuple[str, ...]], **environment: str) -> list[dict[str, Any]]:
    """Do the steps in a process of their own: the hub's client reads its settings when it is imported."""
    inherited = {
        key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGINGFACE"))
    }
    done = subprocess.run(
        [sys.executable, "-c", STEPS, json.dumps(steps), str(place / "data")],
        env={**inherited, "HF_HOME": str(place / "cache"), "HF_HUB_DISABLE_TELEMETRY": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    results: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return results


def test_hub_cache_and_ways_out(hub: HubServer, place: Path) -> None:
    bad = {
        GONE: "not in the cache .* could not be downloaded .RepositoryNotFoundError: 404",
        DOWN: "not in the cache .* could not be downloaded .LocalEntryNotFoundError",
        CUT: r"not in the cache .* could not be downloaded .*received 5\d+ bytes, expected 10\d+",
        PORTAL: "is damaged or belongs to another model .SafetensorError.* Fix: delete it from that cache",
        OTHER: "is damaged or belongs to another model .* Fix: delete it from that cache",
    }
    none, good, *refused = run(
        place,
        [("load", UNASKED, "none"), ("load", GOOD), *(("refused", name) for name in bad)],
        HF_ENDPOINT=f"http://127.0.0.1:{hub.server_port}",
    )
    assert none["source"] is None
    assert good == {"sum": backbone_sum(GOOD), "source": f"timm/{GOOD}.r160_in1k"}
    for message, result in zip(bad.values(), refused, strict=True):
        assert result["code"] == 2 and re.search(message, result["text"]), result["text"]
        assert "--weights FILE" in result["text"] and str(place / "cache" / "hub") in result["text"]
    asked = {line.split("/")[2].partition(".")[0] for line in hub.log}
    assert asked == {GOOD, *bad}, "--weights none asks nobody, and nothing else is asked for either"

    hub.shutdown()
    again, missing = run(
        place,
        [("load", GOOD), ("refused", GONE)],
        HF_ENDPOINT=f"http://127.0.0.1:{hub.server_port}",
        HF_HUB_OFFLINE="1",
    )
    assert again == good, "from the cache, the hub gone"
    for word in (str(place / "cache" / "hub"), "HF_ENDPOINT", "HF_HOME", "--weights FILE", "--weights none"):
        assert missing["code"] == 2 and word in missing["text"]


def backbone_sum(name: str) -> float:
    return sum(v.double().sum().item() for key, v in weights(name).items() if not key.startswith("head."))


def test_torchvision_from_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import models

    source = models.squeezenet1_1(weights=None)
    url = models.SqueezeNet1_1_Weights.DEFAULT.url
    file = tmp_path / "hub" / "checkpoints" / url.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    torch.save(source.state_dict(), file)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", None)  # called, it would fail
    made = create("torchvision:squeezenet1_1", pretrained=True)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(made.module.eval()(images), source.eval()(images))

    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(
        UserError, match=r"torchvision:squeezenet1_1.*is damaged[\s\S]*delete it from that cache"
    ):
        create("torchvision:squeezenet1_1", pretrained=True)


def test_a_hub_that_cannot_be_reached_is_known_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    from warmstart.models.download import hub_answers

    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert hub_answers()
    assert not hub_answers()
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    assert hub_answers()
