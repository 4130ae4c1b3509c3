"""`rift push` against a hub on this machine: what is sent, with which licence, and never without the word."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch

from riftcli.errors import UsageError
from riftcli.models.hub import with_licence


class Hub(BaseHTTPRequestHandler):
    """The calls that making a repository and one commit of small files take."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.server.calls.append(self.path)
        status, answer = 200, {}
        if self.server.refuse:
            status, answer = 401, {"error": "Invalid credentials"}
        elif self.path == "/api/repos/create":
            self.server.made.append(json.loads(body))
            answer = {"url": f"{self.server.address}/me/model"}
        elif self.path.endswith("/preupload/main"):
            names = [entry["path"] for entry in json.loads(body)["files"]]
            answer = {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False, "oid": None} for name in names]}
        elif self.path.endswith("/commit/main"):
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.server.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            answer = {"commitUrl": f"{self.server.address}/me/model/commit/1", "commitOid": "1" * 40, "success": True}
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Quiet."""


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.address = f"http://127.0.0.1:{server.server_port}"
    server.calls, server.made, server.files, server.refuse = [], [], {}, False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield server
    server.shutdown()


def test_a_model_arrives_with_licence_and_card_and_timm_loads_it(rift, run, hub, tmp_path):
    (run / "model" / "notes.pkl").write_bytes(b"not to be sent")
    code, _, err = rift("push", run, "me/model", "--license", "cc-by-nc-4.0", "--yes")
    assert code == 0, err
    assert err.strip() == f"pushed: {hub.address}/me/model; load it with model.name hf-hub:me/model"
    assert [(made["name"], made["organization"]) for made in hub.made] == [("model", "me")]
    assert hub.made[0].get("private") is True or hub.made[0].get("visibility") == "private"
    assert set(hub.files) == {"README.md", "config.json", "model.safetensors"}
    assert hub.files["model.safetensors"] == (run / "model" / "model.safetensors").read_bytes()
    card = hub.files["README.md"].decode()
    assert card.startswith("---\nlicense: cc-by-nc-4.0\nlibrary_name: timm\n")
    assert card.endswith((run / "model" / "README.md").read_text().split("\n---\n", 1)[1])
    arrived = tmp_path / "arrived"
    arrived.mkdir()
    for name, content in hub.files.items():
        (arrived / name).write_bytes(content)
    loaded = timm.create_model(f"local-dir:{arrived}", pretrained=True)
    own = timm.create_model(f"local-dir:{run / 'model'}", pretrained=True)
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), own.state_dict().values(), strict=True))


def test_never_without_the_word_and_refusals_are_one_line(rift, run, hub):
    code, _, err = rift("push", run, "me/model", "--license", "mit")
    assert (code, err.startswith("error: push sends README.md, config.json, model.safetensors (")) == (2, True)
    assert err.strip().endswith("to me/model: say --yes")
    code, _, err = rift("push", run, "me/model")
    assert (code, "--license" in err) == (2, True)
    code, _, err = rift("push", run, "model", "--license", "mit", "--yes")
    assert (code, err) == (2, "error: model: not a repository; give OWNER/NAME\n")
    code, _, err = rift("push", run, "me/model", "--license", "My own!", "--yes")
    assert (code, err.startswith("error: --license My own!: not the name of a licence as hubs have them")) == (2, True)
    assert hub.calls == [], "nothing was asked of the hub so far"
    hub.refuse = True
    code, _, err = rift("push", run, "me/model", "--license", "mit", "--yes")
    assert (code, err.count("\n")) == (5, 1)
    assert "me/model: the hub refuses (" in err
    assert "log in with `hf auth login`" in err


def test_a_hub_that_cannot_be_reached(rift, run, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    code, _, err = rift("push", run, "me/model", "--license", "mit", "--yes")
    assert (code, err.count("\n")) == (5, 1)
    assert "me/model: the hub cannot be reached (" in err


def test_cards():
    assert with_licence("# text", "mit") == "---\nlicense: mit\n---\n# text"
    assert (
        with_licence("---\nlicense: other\ntags: [a]\n---\nrest\n---\n", "mit")
        == "---\nlicense: mit\ntags: [a]\n---\nrest\n---\n"
    )
    with pytest.raises(UsageError):
        with_licence("", "no such\nlicence: x")


def test_a_folder_without_weights(rift, tmp_path, hub):
    (tmp_path / "empty").mkdir()
    code, _, err = rift("push", tmp_path / "empty", "me/model", "--license", "mit", "--yes")
    assert code in (2, 4)
    assert err.count("\n") == 1
    assert hub.calls == []
    assert not Path("me").exists()
