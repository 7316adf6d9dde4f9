"""A server that speaks the protocol of Hugging Face's hub, and that of sherpa-onnx's releases, with files of tests.

It answers what `huggingface_hub` asks to read and to write a repository, and misbehaves on demand.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

_SHORTEST_LFS = 100  # bytes


@dataclass
class Repository:
    """Files by name, as they are listed, and by the name of the file, what is sent instead."""

    files: dict[str, bytes]
    is_private: bool = False
    is_gated: bool = False
    sent: dict[str, bytes] = field(default_factory=dict)

    @property
    def commit(self) -> str:
        return hashlib.sha1(repr(sorted(self.files.items())).encode()).hexdigest()


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.archives: dict[str, bytes] = {}
        self.downloads: list[tuple[str, int]] = []
        """Names of the files that were sent, and the byte they were sent from."""
        self.most_bytes = 1 << 40
        """Bytes of a file after which a connection breaks off."""

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        """Keep silent about clients that have gone, as tests look for a traceback in what a command prints."""

    def publish(self, name, folder=None, **files):
        """Publish the files of a folder, and those given by name."""
        paths = [] if folder is None else [path for path in folder.rglob("*") if path.is_file()]
        contents = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths} | files
        self.repositories[name] = Repository(contents)
        return self.repositories[name]


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self._get(is_head=True)

    def do_GET(self):
        self._get(is_head=False)

    def _get(self, *, is_head):
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/asr-models/"):
            content = self.server.archives.get(path)
            return self._refuse(404, "") if content is None else self._send_file(content, path, is_head, {})
        if path.startswith("/api/models/"):
            return self._facts(path.removeprefix("/api/models/"))
        name, _, rest = path.strip("/").partition("/resolve/")
        repository = self._repository(name)
        if repository is None:
            return None
        revision, _, file = rest.partition("/")
        if revision not in ("main", repository.commit):
            return self._refuse(404, "RevisionNotFound")
        if file not in repository.files:
            return self._refuse(404, "EntryNotFound")
        content = repository.files[file]
        headers = {"X-Repo-Commit": repository.commit, "ETag": f'"{_hash(content)}"'}
        return self._send_file(repository.sent.get(file, content), file, is_head, headers)

    def _facts(self, path):
        name = "/".join(path.split("/")[:2])
        repository = self._repository(name)
        if repository is None:
            return None
        rest = path.removeprefix(name).strip("/")
        if rest.startswith("revision/") and rest.removeprefix("revision/") not in ("main", repository.commit):
            return self._refuse(404, "RevisionNotFound")
        files = [_entry(file, content) for file, content in repository.files.items()]
        if rest.startswith("tree/"):
            return self._send_json([{"type": "file", "path": entry.pop("rfilename"), **entry} for entry in files])
        return self._send_json({"id": name, "modelId": name, "sha": repository.commit, "siblings": files})

    def _repository(self, name):
        repository = self.server.repositories.get(name)
        is_known = self.headers.get("Authorization") == "Bearer hf_secret"
        if repository is None or (repository.is_private and not is_known):
            return self._refuse(401, "RepoNotFound")
        if repository.is_gated and not is_known:
            return self._refuse(403, "GatedRepo")
        return repository

    def do_POST(self):
        path, body = urlsplit(self.path).path, self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != "Bearer hf_secret":
            return self._refuse(401, "")
        if path == "/api/repos/create":
            wish = json.loads(body)
            name = "/".join(filter(None, (wish.get("organization") or "me", wish["name"])))
            self.server.repositories.setdefault(name, Repository({}, is_private=bool(wish.get("private"))))
            return self._send_json({"url": f"{self.server.url}/{name}", "id": name})
        if path == "/api/validate-yaml":
            return self._send_json({"errors": [], "warnings": []})
        name = "/".join(path.removeprefix("/api/models/").split("/")[:2])
        if "/preupload/" in path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self._send_json({"files": files})
        assert "/commit/" in path, path
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "deletedFile":
                del self.server.repositories[name].files[line["value"]["path"]]
            if line["key"] == "file":
                self.server.repositories[name].files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        commit = self.server.repositories[name].commit
        url = f"{self.server.url}/{name}/commit/{commit}"
        return self._send_json({"success": True, "commitOid": commit, "commitUrl": url})

    def _refuse(self, status, code):
        self.send_response(status)
        self.send_header("Content-Length", "0")
        if code:
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", code)
        self.end_headers()

    def _send_json(self, value):
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _send_file(self, content, file, is_head, headers):
        start = int(self.headers.get("Range", "bytes=0-")[6:].split("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if is_head:
            return
        self.server.downloads.append((file, start))
        self.wfile.write(content[start : start + self.server.most_bytes])
        self.close_connection = True

    def log_message(self, format, *args):
        pass


def _hash(content: bytes) -> str:
    is_large = len(content) >= _SHORTEST_LFS
    return hashlib.sha256(content).hexdigest() if is_large else hashlib.sha1(content).hexdigest()


def _entry(file: str, content: bytes) -> dict:
    entry = {"rfilename": file, "size": len(content), "oid": _hash(content), "blobId": _hash(content)}
    if len(content) >= _SHORTEST_LFS:
        lfs = {"sha256": _hash(content), "oid": _hash(content), "size": len(content), "pointerSize": 130}
        entry["lfs"] = lfs
    return entry


@contextmanager
def serving_hub():
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


def point_at(url, cache, monkeypatch):
    """Set what HF_ENDPOINT and HF_HOME set when huggingface_hub is imported."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
