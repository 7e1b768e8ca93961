"""Hub ids: only the needed files are downloaded, the cache serves offline, errors say what to do.

A small server speaks the hub's protocol on this machine; huggingface_hub itself is not replaced.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from fvexport.core.errors import CheckpointError
from fvexport.encoder.checkpoint import load_checkpoint

Tensors = dict[str, Tensor]
COMMIT = "0123456789abcdef0123456789abcdef01234567"

# Loads each (source, options) of argv[1] and tells what came of it.
LOAD = """
import dataclasses, json, sys
from fvexport.encoder.checkpoint import load_checkpoint
from fvexport.core.errors import CheckpointError
for source, options in json.loads(sys.argv[1]):
    calls = []
    try:
        info = load_checkpoint(source, progress=lambda *call: calls.append(call), **options).info
        result = dataclasses.asdict(info)
    except CheckpointError as error:
        result = {"error": str(error)}
    result["downloads"] = [call for call in calls if call[0].startswith("downloading")]
    print(json.dumps(result), flush=True)
"""


class Hub(ThreadingHTTPServer):
    """Serves `repos`: id -> folder, and remembers which files were sent, as which revision."""

    repos: dict[str, Path]
    gated: set[str]
    sent: list[tuple[str, str]]


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def _fail(self, code: int, reason: str) -> None:
        self.send_response(code)
        self.send_header("X-Error-Code", reason)
        self.send_header("X-Error-Message", reason)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        if api:
            parts = parts[2:]
        repo, rest = "/".join(parts[:2]), parts[2:]
        revision = rest[1] if len(rest) > 1 else "main"
        if repo not in self.server.repos:
            self._fail(404, "RepoNotFound")
            return
        if revision not in ("main", "v1", COMMIT):
            self._fail(404, "RevisionNotFound")
            return
        folder = self.server.repos[repo]
        if api:
            names = sorted(path.name for path in folder.iterdir())
            body = json.dumps({"id": repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}).encode()
            etag = None
        else:
            if repo in self.server.gated:
                self._fail(403, "GatedRepo")
                return
            if not (file := folder / rest[-1]).is_file():
                self._fail(404, "EntryNotFound")
                return
            body = file.read_bytes()
            etag = hashlib.sha256(body).hexdigest()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        if etag:
            self.send_header("ETag", f'"{etag}"')
            self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
            if etag:
                self.server.sent.append((revision, rest[-1]))


@pytest.fixture
def hub(llava: Tensors, timm: Tensors, write_shards: Callable[..., Path], write: Callable[..., Path]) -> Iterator[Hub]:
    encoder = {n: t for n, t in llava.items() if "vision_tower" in n}
    language = {n: t for n, t in llava.items() if "vision_tower" not in n and "mm_projector" not in n}
    connector = {n: t for n, t in llava.items() if "mm_projector" in n}
    sharded = write_shards([encoder, language, connector])
    (sharded / "config.json").write_text(json.dumps({"mm_vision_tower": "mobileclip_l_512"}))
    (sharded / "README.md").write_text("not needed")
    empty = write({}, name="model.safetensors", folder="empty")
    (empty / "model.safetensors").rename(empty / "notes.txt")
    server = Hub(("127.0.0.1", 0), Handler)
    server.repos = {"org/sharded": sharded, "org/gated": sharded, "org/empty": empty,
                    "org/pickled": write(timm, name="some.pt", folder="pickled")}  # fmt: skip
    server.gated, server.sent = {"org/gated"}, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Loads sources in a process of its own, since huggingface_hub reads its settings once."""

    def run(*requests: tuple[str, dict[str, str]], **settings: str) -> list[dict[str, Any]]:
        environment = {
            k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING")) and "proxy" not in k.lower()
        }
        environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1", **settings}
        command = [sys.executable, "-c", LOAD, json.dumps(requests)]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


def test_downloads_then_cache(hub: Hub, load: Callable[..., list[dict[str, Any]]], tmp_path: Path) -> None:
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    loaded, pinned, pickled, gated, unknown, no_revision, empty = load(
        ("org/sharded", {}),
        ("org/sharded", {"revision": COMMIT}),
        ("org/pickled", {"revision": "v1"}),
        ("org/gated", {}),
        ("org/unknown", {}),
        ("org/sharded", {"revision": "nope"}),
        ("org/empty", {}),
        HF_ENDPOINT=endpoint,
    )
    local = load_checkpoint(hub.repos["org/sharded"]).info
    assert loaded["sha256"] == local.sha256
    assert loaded["connector_sha256"] == local.connector_sha256
    assert (loaded["source"], loaded["revision"], loaded["resolution"]) == ("org/sharded", COMMIT, 512)
    # Each once, and neither the language model's shard nor anything else.
    assert hub.sent == [
        ("main", "config.json"),  # all else by the commit that `main` was
        (COMMIT, "model.safetensors.index.json"),
        (COMMIT, "model-00001-of-00003.safetensors"),
        (COMMIT, "model-00003-of-00003.safetensors"),
        ("v1", "some.pt"),
    ]
    assert pinned["sha256"] == local.sha256
    assert (pickled["form"], pickled["revision"]) == ("timm", COMMIT)
    if loaded["downloads"]:  # older versions of huggingface_hub show a bar of their own instead
        task, done, total = loaded["downloads"][-1]
        assert task == "downloading model-00003-of-00003.safetensors"
        assert done == total == (hub.repos["org/sharded"] / "model-00003-of-00003.safetensors").stat().st_size

    assert "the repository is gated" in gated["error"]
    assert "accept its terms at https://huggingface.co/org/gated" in gated["error"]
    assert "no such folder, and no such model on the hub" in unknown["error"]
    assert "has no revision 'nope'" in no_revision["error"]
    assert "holds no weights: found notes.txt" in empty["error"]

    offline = [
        ("org/sharded", {}),
        ("org/sharded", {"revision": COMMIT}),
        ("org/gated", {}),
        ("org/sharded", {"revision": "v9"}),
    ]
    cached, by_commit, absent, absent_revision = load(*offline, HF_HUB_OFFLINE="1")
    for result in (cached, by_commit):
        assert (result["sha256"], result["revision"], result["resolution"]) == (local.sha256, COMMIT, 512)
    for result in (absent, absent_revision):
        assert "its weights are not in the local cache, and HF_HUB_OFFLINE is set; unset it" in result["error"]

    # A folder of the same name wins, as its absent revision shows.
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "pickled").symlink_to(hub.repos["org/pickled"])
    hub.shutdown()
    hub.server_close()
    folder, no_server, cached = load(("org/pickled", {}), ("org/new", {}), ("org/sharded", {}), HF_ENDPOINT=endpoint)
    assert folder["revision"] is None
    assert "the hub cannot be reached" in no_server["error"]
    assert "hf download org/new" in no_server["error"]
    assert cached["revision"] == COMMIT


def test_partly_cached(tmp_path: Path, hub: Hub, load: Callable[..., list[dict[str, Any]]]) -> None:
    """A cache in huggingface_hub's own layout, as an interrupted download leaves it."""
    repo = tmp_path / "home" / "hub" / "models--org--sharded"
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    for name in ("config.json", "model.safetensors.index.json", "model-00003-of-00003.safetensors"):
        (snapshot / name).symlink_to(hub.repos["org/sharded"] / name)
    (result,) = load(("org/sharded", {}), HF_HUB_OFFLINE="1")
    assert "model-00001-of-00003.safetensors is not in the local cache" in result["error"]
    (snapshot / "model-00001-of-00003.safetensors").symlink_to(
        hub.repos["org/sharded"] / "model-00001-of-00003.safetensors"
    )
    (result,) = load(("org/sharded", {}), HF_HUB_OFFLINE="1")
    assert (result["form"], result["revision"]) == ("llava", COMMIT)


def test_cache_that_may_not_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """HF_HOME of another user: its token and its files are closed to this one."""

    def closed(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied", "/home/other/hf/token")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", closed)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", closed)
    with pytest.raises(CheckpointError, match=r"the cache of the hub may not be used.*set HF_HOME to a folder"):
        load_checkpoint("apple/FastVLM-0.5B")
