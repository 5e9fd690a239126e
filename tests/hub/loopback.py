"""A small Hub over real HTTP: what huggingface_hub, datasets, PEFT and transformers ask of huggingface.co, in memory.

Repositories have branches and pull requests of commits; a commit is a mapping from path to file. Large files go through
Git LFS as they do on the Hub (batch, PUT, redirect on download). Private and gated repositories answer as the Hub does.
`faults` makes requests fail on purpose.
"""

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".parquet", ".bin", ".png")
OWNER = "hf_ownerownerownerownerownerowner00"
STRANGER = "hf_strangerstrangerstrangerstran01"
READER = "hf_readerreaderreaderreaderreader2"
USERS = {OWNER: "me", STRANGER: "you", READER: "me"}


@dataclass(frozen=True)
class File:
    """A file of a commit."""

    content: bytes
    lfs: bool

    @property
    def oid(self) -> str:
        """Name of the blob in Git; of a large file, that of its pointer."""
        body = self.content
        if self.lfs:
            body = (
                f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
            ).encode()
        return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid


@dataclass(frozen=True)
class Commit:
    """A state of a repository."""

    files: Mapping[str, File]
    parent: "Commit | None"
    title: str
    number: int

    @property
    def sha(self) -> str:
        parts = [self.title, str(self.number), self.parent.sha if self.parent else ""]
        parts += [f"{path} {file.oid}" for path, file in sorted(self.files.items())]
        return hashlib.sha1("\n".join(parts).encode()).hexdigest()

    def history(self) -> Iterator["Commit"]:
        commit: Commit | None = self
        while commit is not None:
            yield commit
            commit = commit.parent


@dataclass
class Repo:
    """A model or dataset repository."""

    kind: str
    name: str
    private: bool = False
    gated: bool = False
    refs: dict[str, Commit] = field(default_factory=lambda: {"main": Commit({}, None, "initial commit", 0)})

    def find(self, revision: str) -> Commit | None:
        if revision in self.refs:
            return self.refs[revision]
        commits = (commit for ref in self.refs.values() for commit in ref.history())
        return next((commit for commit in commits if commit.sha.startswith(revision) and len(revision) >= 7), None)


@dataclass
class Fault:
    """Requests that fail: those whose method and path match, from the first one on, `times` of them.

    Attributes:
        pattern: of `"METHOD /path"`.
        status: answered instead; None cuts the connection after `cut` bytes of the true answer (of the request's body
            for an upload).
        headers: of the answer.
        times: how often; None is always.
        stale_etag: whether the etags answered are not those of the files.
    """

    pattern: str
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    times: int | None = None
    cut: int | None = None
    stale_etag: bool = False
    happened: int = 0


class _Answer(Exception):
    """Ends the handling of a request with an error answer."""

    def __init__(self, status: int, code: str | None = None, message: str | None = None) -> None:
        self.status, self.code, self.message = status, code, message


class Loopback:
    """The server; `with Loopback() as hub:` serves at `hub.url`."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.large: dict[tuple[str, str], bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.lock = threading.RLock()
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        # Large files come from another host than the API, as on the Hub; clients stop at such a redirect for metadata.
        self.storage = f"http://localhost:{self._server.server_port}"

    def __enter__(self) -> "Loopback":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def repo(self, name: str, kind: str = "model") -> Repo:
        return self.repos[kind, name]

    def fault(self, method_and_path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if re.search(fault.pattern, method_and_path) and (fault.times is None or fault.happened < fault.times):
                    fault.happened += 1
                    return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    hub: Loopback
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._handle()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _handle(self) -> None:
        parts = urlsplit(self.path)
        self.route, self.query = parts.path, parse_qs(parts.query)
        self.fault = None
        with self.hub.lock:
            self.hub.requests.append(f"{self.command} {unquote(self.path)}")
        try:
            if self.route == "/api/repos/create":
                # The name is in the body, and in the path that a fault is told by.
                body = self._read_body()
                self.fault = self.hub.fault(f"{self.command} {self.route} {json.loads(body)['name']}")
            else:
                self.fault = self.hub.fault(f"{self.command} {unquote(self.route)}")
                body = self._read_body()
            if self.fault is not None and self.fault.status is not None:
                self._send(self.fault.status, b'{"error": "on purpose"}', self.fault.headers)
            else:
                self._dispatch(body)
        except _Answer as answer:
            headers = {"X-Error-Code": answer.code} if answer.code else {}
            if answer.message:
                headers["X-Error-Message"] = answer.message
            self._send(answer.status, json.dumps({"error": answer.message or answer.code}).encode(), headers)
        except (ConnectionError, BrokenPipeError):
            self.close_connection = True

    def _read_body(self) -> bytes:
        length = int(self.headers.get("Content-Length") or 0)
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        if self.fault is not None and self.fault.cut is not None and self.command in ("PUT", "POST"):
            self.rfile.read(min(length, self.fault.cut))
            self.connection.close()
            raise ConnectionError
        return self.rfile.read(length)

    def _send(self, status: int, content: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        headers = {"Content-Length": str(len(content)), "Content-Type": "application/json", **(headers or {})}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault is not None and self.fault.cut is not None and status in (200, 206):
            self.wfile.write(content[: self.fault.cut])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            raise ConnectionError
        self.wfile.write(content)

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode())

    # Who is asking, and what they may see

    @property
    def user(self) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        if not token:
            return None
        if token not in USERS:
            raise _Answer(401, None, "Invalid credentials in Authorization header")
        return USERS[token]

    def _may_write(self) -> None:
        if self.user is None:
            raise _Answer(401, None, "Invalid username or password.")
        if self.headers.get("Authorization", "").endswith(READER):
            raise _Answer(403, None, "this token only reads")

    def _repo(self, kind: str, name: str, *, contents: bool = True) -> Repo:
        repo = self.hub.repos.get((kind, name))
        owner = self.user is not None and self.user == name.split("/")[0]
        if repo is None or (repo.private and not owner):
            raise _Answer(404 if self.user else 401, "RepoNotFound", "Repository not found")
        if repo.gated and contents and not owner:
            raise _Answer(403 if self.user else 401, "GatedRepo", f"Access to {name} is restricted")
        return repo

    def _commit(self, repo: Repo, revision: str) -> Commit:
        commit = repo.find(unquote(revision))
        if commit is None:
            raise _Answer(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    # The API

    def _dispatch(self, body: bytes) -> None:
        for method, pattern, action in _ROUTES:
            if self.command in method and (match := re.fullmatch(pattern, self.route)):
                groups = match.groupdict()
                if "kind" in groups:
                    groups["kind"] = {"models": "model", "datasets": "dataset", "spaces": "space", None: "model"}[
                        groups["kind"]
                    ]
                return action(self, body, **groups)
        raise _Answer(404, None, "no such endpoint")

    def whoami(self, body: bytes) -> None:
        if self.user is None:
            raise _Answer(401, None, "Invalid username or password.")
        self._json({"name": self.user, "type": "user", "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def create_repo(self, body: bytes) -> None:
        self._may_write()
        asked = json.loads(body)
        kind = asked.get("type") or "model"
        name = f"{asked.get('organization') or self.user}/{asked['name']}"
        if name.split("/")[0] != self.user:
            raise _Answer(403, None, "You don't have the rights to create a repository here")
        url = f"{self.hub.url}/{'' if kind == 'model' else f'{kind}s/'}{name}"
        with self.hub.lock:
            if (kind, name) in self.hub.repos:
                return self._json({"error": "You already created this repo", "url": url, "name": name}, 409)
            private = bool(asked.get("private")) or asked.get("visibility") == "private"
            self.hub.repos[kind, name] = Repo(kind, name, private=private)
        self._json({"url": url, "name": name, "id": name})

    def validate_yaml(self, body: bytes) -> None:
        self._json({"errors": [], "warnings": []})

    def info(self, body: bytes, kind: str, name: str, revision: str | None = None) -> None:
        repo = self._repo(kind, name, contents=False)
        commit = self._commit(repo, revision or "main")
        self._json(
            {
                "_id": "0",
                "id": name,
                "modelId": name,
                "author": name.split("/")[0],
                "sha": commit.sha,
                "private": repo.private,
                "gated": "auto" if repo.gated else False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": [],
                "lastModified": "2026-01-01T00:00:00.000Z",
                "createdAt": "2026-01-01T00:00:00.000Z",
                "siblings": [{"rfilename": path} for path in sorted(commit.files)],
            }
        )

    def refs(self, body: bytes, kind: str, name: str) -> None:
        repo = self._repo(kind, name)
        shown = [
            {"name": ref, "ref": ref if ref.startswith("refs/") else f"refs/heads/{ref}", "targetCommit": commit.sha}
            for ref, commit in repo.refs.items()
        ]
        self._json(
            {
                "branches": [item for item in shown if not item["name"].startswith("refs/")],
                "converts": [],
                "tags": [],
                "pullRequests": [item for item in shown if item["name"].startswith("refs/")],
            }
        )

    def commits(self, body: bytes, kind: str, name: str, revision: str) -> None:
        history = self._commit(self._repo(kind, name), revision).history()
        self._json(
            [
                {"id": item.sha, "title": item.title, "message": "", "authors": [], "date": "2026-01-01T00:00:00.000Z"}
                for item in history
            ]
        )

    def tree(self, body: bytes, kind: str, name: str, revision: str, path: str | None = None) -> None:
        commit = self._commit(self._repo(kind, name), revision)
        recursive = self.query.get("recursive", ["False"])[0].lower() in ("true", "1")
        prefix = f"{unquote(path)}/" if path else ""
        found: dict[str, dict[str, Any]] = {}
        for name_of_file, file in sorted(commit.files.items()):
            if not name_of_file.startswith(prefix):
                continue
            rest = name_of_file.removeprefix(prefix)
            folders = rest.split("/")[:-1]
            for depth in range(1, len(folders) + 1) if recursive else range(1, min(1, len(folders)) + 1):
                folder = prefix + "/".join(folders[:depth])
                found.setdefault(folder, {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0})
            if recursive or not folders:
                found[name_of_file] = self._entry(name_of_file, file)
        if path and not found:
            raise _Answer(404, "EntryNotFound", f"{path} does not exist")
        self._json(list(found.values()))

    def paths_info(self, body: bytes, kind: str, name: str, revision: str) -> None:
        commit = self._commit(self._repo(kind, name), revision)
        if self.headers.get("Content-Type", "").startswith("application/json"):
            paths = json.loads(body)["paths"]
        else:
            paths = parse_qs(body.decode())["paths"]
        entries: list[dict[str, Any]] = []
        for path in paths:
            if path in commit.files:
                entries.append(self._entry(path, commit.files[path]))
            elif any(other.startswith(f"{path}/") for other in commit.files):
                entries.append({"type": "directory", "path": path, "oid": "0" * 40, "size": 0})
        self._json(entries)

    def _entry(self, path: str, file: File) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": path, "oid": file.oid, "size": len(file.content)}
        if file.lfs:
            entry["lfs"] = {"oid": file.sha256, "size": len(file.content), "pointerSize": 130}
        return entry

    def create_branch(self, body: bytes, kind: str, name: str, branch: str) -> None:
        self._may_write()
        repo = self._repo(kind, name)
        start = json.loads(body or b"{}").get("startingPoint") or "main"
        with self.hub.lock:
            if unquote(branch) in repo.refs:
                raise _Answer(409, None, f"Reference already exists: {branch}")
            repo.refs[unquote(branch)] = self._commit(repo, start)
        self._json({})

    def preupload(self, body: bytes, kind: str, name: str, revision: str) -> None:
        self._may_write()
        commit = self._commit(self._repo(kind, name), revision)
        answer = []
        for asked in json.loads(body)["files"]:
            path = asked["path"]
            mode = "lfs" if path.endswith(LFS_SUFFIXES) else "regular"
            known = {"oid": commit.files[path].etag} if path in commit.files else {}
            answer.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **known})
        self._json({"files": answer})

    def lfs_batch(self, body: bytes, kind: str, name: str) -> None:
        self._may_write()
        self._repo(kind, name)
        objects = []
        for asked in json.loads(body)["objects"]:
            item = {"oid": asked["oid"], "size": asked["size"]}
            if (name, asked["oid"]) not in self.hub.large:
                item["actions"] = {"upload": {"href": f"{self.hub.storage}/lfs/{name}/{asked['oid']}"}}
            objects.append(item)
        self._json({"transfer": "basic", "objects": objects})

    def lfs_put(self, body: bytes, name: str, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            raise _Answer(400, None, "content does not match its checksum")
        self.hub.large[name, oid] = body
        self._send(200, b"", {"ETag": f'"{oid}"'})

    def lfs_get(self, body: bytes, name: str, oid: str) -> None:
        self._content(self.hub.large[name, oid], {"ETag": f'"{oid}"'})

    def make_commit(self, body: bytes, kind: str, name: str, revision: str) -> None:
        self._may_write()
        repo = self._repo(kind, name)
        lines = [json.loads(line) for line in body.decode().splitlines() if line.strip()]
        header = lines[0]["value"]
        with self.hub.lock:
            head = self._commit(repo, revision)
            if header.get("parentCommit") and header["parentCommit"] != head.sha:
                raise _Answer(412, None, "A commit has happened since. Please refresh and try again.")
            files = dict(head.files)
            for line in lines[1:]:
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = File(base64.b64decode(value["content"]), lfs=False)
                elif line["key"] == "lfsFile":
                    if (name, value["oid"]) not in self.hub.large:
                        raise _Answer(400, None, f"LFS object {value['oid']} was not uploaded")
                    files[value["path"]] = File(self.hub.large[name, value["oid"]], lfs=True)
                elif line["key"] == "deletedFile":
                    del files[value["path"]]
                elif line["key"] == "deletedFolder":
                    files = {path: file for path, file in files.items() if not path.startswith(value["path"])}
            ref, extra = unquote(revision), {}
            if self.query.get("create_pr") == ["1"]:
                number = sum(name.startswith("refs/pr/") for name in repo.refs) + 1
                ref = f"refs/pr/{number}"
                extra = {"pullRequestUrl": f"{self.hub.url}/{name}/discussions/{number}"}
            commit = Commit(files, head, header["summary"], len(list(head.history())))
            repo.refs[ref] = commit
        url = f"{self.hub.url}/{'' if kind == 'model' else f'{kind}s/'}{name}/commit/{commit.sha}"
        self._json({"success": True, "commitOid": commit.sha, "commitUrl": url, **extra})

    def resolve(self, body: bytes, kind: str, name: str, revision: str, path: str) -> None:
        commit = self._commit(self._repo(kind, name), revision)
        path = unquote(path)
        if path not in commit.files:
            raise _Answer(404, "EntryNotFound", f"{path} does not exist")
        file = commit.files[path]
        stale = self.fault is not None and self.fault.stale_etag
        etag = hashlib.sha256(file.etag.encode()).hexdigest()[: len(file.etag)] if stale else file.etag
        headers = {
            "X-Repo-Commit": commit.sha,
            "X-Linked-Etag": f'"{etag}"',
            "X-Linked-Size": str(len(file.content)),
            "Accept-Ranges": "bytes",
        }
        if file.lfs:
            self.hub.large[name, file.sha256] = file.content
            headers["Location"] = f"{self.hub.storage}/lfs/{name}/{file.sha256}"
            return self._send(302, b"", headers)
        self._content(file.content, {**headers, "ETag": f'"{etag}"'})

    def _content(self, content: bytes, headers: dict[str, str]) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            return self._send(200, content, {**headers, "Content-Type": "application/octet-stream"})
        first = int(asked[1])
        last = min(int(asked[2] or len(content)), len(content) - 1)
        if first > last:
            return self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
        place = f"bytes {first}-{last}/{len(content)}"
        self._send(206, content[first : last + 1], {**headers, "Content-Range": place})


_KIND = r"/api/(?P<kind>models|datasets|spaces)"
_NAME = r"(?P<name>[^/]+/[^/]+)"
_FILES = r"/(?:(?P<kind>datasets|spaces)/)?" + _NAME
_ROUTES: list[tuple[tuple[str, ...], str, Any]] = [
    (("GET",), r"/api/whoami-v2", _Handler.whoami),
    (("POST",), r"/api/repos/create", _Handler.create_repo),
    (("POST",), r"/api/validate-yaml", _Handler.validate_yaml),
    (("GET",), rf"{_KIND}/{_NAME}", _Handler.info),
    (("GET",), rf"{_KIND}/{_NAME}/revision/(?P<revision>[^/]+)", _Handler.info),
    (("GET",), rf"{_KIND}/{_NAME}/refs", _Handler.refs),
    (("GET",), rf"{_KIND}/{_NAME}/commits/(?P<revision>[^/]+)", _Handler.commits),
    (("GET",), rf"{_KIND}/{_NAME}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", _Handler.tree),
    (("POST",), rf"{_KIND}/{_NAME}/paths-info/(?P<revision>[^/]+)", _Handler.paths_info),
    (("POST",), rf"{_KIND}/{_NAME}/branch/(?P<branch>.+)", _Handler.create_branch),
    (("POST",), rf"{_KIND}/{_NAME}/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    (("POST",), rf"{_KIND}/{_NAME}/commit/(?P<revision>[^/]+)", _Handler.make_commit),
    (("POST",), rf"{_FILES}.git/info/lfs/objects/batch", _Handler.lfs_batch),
    (("PUT",), rf"/lfs/{_NAME}/(?P<oid>[0-9a-f]+)", _Handler.lfs_put),
    (("GET", "HEAD"), rf"/lfs/{_NAME}/(?P<oid>[0-9a-f]+)", _Handler.lfs_get),
    (("GET", "HEAD"), rf"{_FILES}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
]


if __name__ == "__main__":
    with Loopback() as hub:
        print(hub.url, flush=True)
        while True:
            time.sleep(60)
