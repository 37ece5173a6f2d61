"""Roots: nothing that a file system holds or answers stops an ingest, hangs it, or leaves it without a word."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import tempfile
import time
import unicodedata

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from ingested import lines, picture, put, take

from omniloom.infra.errors import InputError
from omniloom.stages.ingest import readers, rows, sources
from omniloom.stages.ingest import stage as ingest
from omniloom.stages.ingest.files import retrying, roots


def records_of(config: ingest.Config, item: dict) -> list[dict]:
    return list(readers.Reader(config, 0).read(item))


def images(uri, **fields) -> dict:
    return {"kind": "image_folder", "uri": str(uri), **fields}


def rows_of(uri, **fields) -> dict:
    return {"kind": "jsonl", "uri": str(uri), "image_field": "image", **fields}


# ---- files that are none ----


@pytest.fixture
def odd_files(tmp_path):
    """A folder with a picture, a FIFO, a socket, a link to a device, a looping link and a dead one."""
    put(tmp_path, {"in/ok.png": picture()})
    os.mkfifo(tmp_path / "in" / "pipe.png")
    (tmp_path / "in" / "null.png").symlink_to("/dev/null")
    (tmp_path / "in" / "loop.png").symlink_to("loop.png")
    (tmp_path / "in" / "dead.png").symlink_to("nowhere.png")
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(tmp_path / "in")  # the name of a socket has little room
        server.bind("sock.png")
        yield tmp_path / "in"


ODD = ("pipe.png", "sock.png", "null.png", "loop.png", "dead.png")


@pytest.fixture(autouse=True)
def _home():
    here = os.getcwd()
    yield
    os.chdir(here)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("follow", [False, True])
def test_what_is_no_regular_file_is_never_opened(odd_files, follow):
    _, rows, rejects = take(images(odd_files, follow_links=follow))
    assert {path for path, _ in rows} == {"ok.png"}
    codes = dict(rejects)
    assert {path for path, _ in codes} == set(ODD)
    assert "FIFO" in codes["pipe.png", "not_a_file"] and "socket" in codes["sock.png", "not_a_file"]
    assert "device" in codes["null.png", "not_a_file"] if follow else ("null.png", "outside_root") in codes
    assert "symbolic links" in codes["loop.png", "unreadable"]


@pytest.mark.timeout(60)
def test_rows_and_manifests_that_name_no_regular_file_are_rejects(odd_files):
    names = [
        *ODD,
        "x" * 300 + ".png",
        "y/" * 3000 + "z.png",
        "長" * 120 + ".png",
        "\ud800.png",
        "a\0b.png",
        "ok.png/x",
        "iVBOR" * 2000,
        ".",
        "in",
        "",
    ]
    put(odd_files, {"a.jsonl": lines(*({"image": name, "caption": "c"} for name in [*names, "ok.png"]))})
    metrics, rows, rejects = take(rows_of(odd_files, follow_links=True))
    assert set(rows) == {("a.jsonl", len(names) + 1)} and metrics["rejects"] == len(names)
    assert "File name too long" in rejects["a.jsonl", "bad_name"]

    put(odd_files, {"m.jsonl": lines(*({"file": name, "caption": "c"} for name in ["ok.png", *names]))})
    metrics, rows, _ = take(images(odd_files, include="ok.png", captions={"manifest": "m.jsonl"}))
    assert rows["ok.png", 0]["captions"] == ["c"]

    segments = [{"type": "text", "text": "t"}]
    put(
        odd_files,
        {
            "d.jsonl": lines(
                {"file": "good.md", "segments": segments},
                *({"file": "p.md", "segments": [*segments, {"type": "image", "file": name}]} for name in names),
            )
        },
    )
    metrics, rows, _ = take({"kind": "interleaved", "uri": str(odd_files), "manifest": "d.jsonl"})
    assert metrics["records"] == 1 and metrics["rejects"] == len(names)


@pytest.mark.timeout(60)
def test_a_root_or_a_manifest_that_is_a_fifo_is_an_error(odd_files):
    with pytest.raises(InputError, match="neither a file nor a folder"):
        take(images(odd_files / "pipe.png"))
    for manifest in ("pipe.png", str(odd_files / "pipe.png")):
        with pytest.raises(InputError) as caught:
            take(images(odd_files, captions={"manifest": manifest}))
        assert caught.value.field == "sources.0.captions.manifest"


# ---- folders ----


def test_deep_folders_are_read_and_paths_beyond_the_systems_limit_are_rejects(tmp_path):
    put(tmp_path, {"top.png": picture()})
    here = os.open(tmp_path, os.O_RDONLY)
    for depth in range(2100):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
        if depth in (1199, 2099):
            with os.fdopen(os.open(f"{depth}.png", os.O_WRONLY | os.O_CREAT, dir_fd=here), "wb") as file:
                file.write(picture())
    os.close(here)
    put(tmp_path, {"a.txt": "text"})
    for source, found in (
        (images(tmp_path), {"top.png", "1199.png"}),
        ({"kind": "text", "uri": str(tmp_path)}, {"a.txt"}),
    ):
        config = ingest.Config.model_validate({"sources": [source]})
        items = {item["path"].rsplit("/", 1)[-1]: item for item in sources.items(config)}
        ((code, message),) = (item["reject"] for item in items.values() if "reject" in item)
        assert {name for name, item in items.items() if "reject" not in item} == found
        assert code == "bad_name" and "File name too long" in message
        if "1199.png" in items:
            assert records_of(config, items["1199.png"])[0]["width"] == 11
    subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)


def as_another_user(work):
    """What `work` gives in a fork of this process that is nobody's, for whom permissions count."""
    reader, writer = os.pipe()
    if not (child := os.fork()):
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            answer = json.dumps(work())
        except BaseException as error:
            answer = json.dumps(repr(error))
        os.write(writer, answer.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        answer = json.loads(file.read())
    os.waitpid(child, 0)
    return answer


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_folder_without_permission_is_a_reject():
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to others
        os.chmod(folder, 0o755)
        put(folder, {"in/ok.png": picture(), "in/private/a.png": picture(), "in/shut.png": picture()})
        take(images(folder))  # whatever is imported late is here before the fork
        for name in ("private", "shut.png"):
            os.chmod(f"{folder}/in/{name}", 0)

        def work():
            _, rows, rejects = take(images(f"{folder}/in"))
            return sorted(path for path, _ in rows), sorted(rejects), sorted(rejects.values())

        rows, rejects, messages = as_another_user(work)
        assert rows == ["ok.png"] and rejects == [["private/", "unreadable"], ["shut.png", "unreadable"]]
        assert all("Permission denied" in message for message in messages)
        os.chmod(f"{folder}/in/private", 0o755)


# ---- errors of filesystems ----


class Flaky(MemoryFileSystem):
    """A store of this test whose answers are written in `plan`: (operation, part of the path) -> errors to raise, the
    last of them for ever where it is repeated by `...`."""

    protocol = "flaky"
    store, pseudo_dirs = {}, [""]
    plan: dict[tuple[str, str], list] = {}
    calls: list[str] = []

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("flaky://", "memory://"))

    def _answer(self, operation: str, path: str) -> None:
        self.calls.append(f"{operation} {path}")
        for (name, part), errors in self.plan.items():
            if name == operation and path.endswith(part) and errors:
                error = errors[0]
                if errors[-1] is not ...:
                    errors.pop(0)
                raise error

    def cat_file(self, path, *args, **kwargs):
        self._answer("read", path)
        return super().cat_file(path, *args, **kwargs)

    def ls(self, path, detail=True, **kwargs):
        self._answer("list", path)
        return super().ls(path, detail=detail, **kwargs)

    def _open(self, path, mode="rb", **kwargs):
        if mode == "rb":
            self._answer("open", path)
        file = super()._open(path, mode, **kwargs)
        if mode == "rb" and path.endswith("torn.jsonl"):
            self._answer_reads(file)
        return file

    def _answer_reads(self, file):
        real = file.read

        def read(size=-1):
            self._answer("block", "torn.jsonl") if file.tell() else None
            return real(size)

        file.read = read


fsspec.register_implementation("flaky", Flaky, clobber=True)


class HttpError(Exception):
    """As clients of other stores tell it."""

    def __init__(self, code):
        super().__init__("an answer")
        self.code = code


class ClientError(Exception):
    """As botocore tells a throttled request."""

    def __init__(self, status=503, code="SlowDown"):
        super().__init__("An error occurred")
        self.response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}


@pytest.fixture
def flaky(monkeypatch):
    monkeypatch.setattr(retrying, "WAITS", (0.0, 0.0, 0.0))
    Flaky.store.clear()
    Flaky.pseudo_dirs[:] = [""]
    Flaky.plan, Flaky.calls = {}, []
    monkeypatch.setattr(Flaky, "plan", {})
    return "flaky://in"


PASSING = [
    OSError(errno.EIO, "Input/output error"),
    ConnectionResetError("reset"),
    TimeoutError("timed out"),
    ClientError(),
    ClientError(429, "TooManyRequests"),
    ClientError(200, "Throttling"),
    HttpError(503),
    OSError(errno.ESTALE, "Stale file handle"),
    type("ServerDisconnectedError", (Exception,), {})("gone"),
]


@pytest.mark.parametrize("error", PASSING, ids=lambda error: type(error).__name__)
def test_an_error_that_passes_is_tried_again(flaky, error):
    put(flaky, {"sub/a.png": picture(), "b.png": picture()})
    Flaky.plan |= {("read", "b.png"): [error] * 3, ("list", "/sub"): [error] * 2}
    metrics, rows, rejects = take(images(flaky))
    assert {path for path, _ in rows} == {"sub/a.png", "b.png"} and rejects == {}


@pytest.mark.parametrize(
    "error, code, said",
    [
        (OSError(errno.EIO, "Input/output error"), "unreadable", "tried 4 times"),
        (ClientError(), "unreadable", "ClientError"),
        (HttpError(404), "unreadable", "HttpError"),
        (PermissionError("denied"), "unreadable", "denied"),
        (FileNotFoundError("x"), "missing_file", "not there"),
        (OSError(errno.ENXIO, "No such device"), "unreadable", "No such device"),
        (MemoryError(), "unreadable", "MemoryError"),
        (ValueError("what?"), "unreadable", "what?"),
        (RecursionError("too deep"), "unreadable", "RecursionError: too deep"),
        (UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"), "bad_name", "x.png"),
        (KeyError("k"), "unreadable", "KeyError"),
    ],
)
def test_an_error_that_stays_costs_its_item_alone(flaky, error, code, said):
    rows = [{"image": name, "caption": name} for name in ("a.png", "x.png", "b.png")]
    put(
        flaky,
        {
            "x.png": picture(),
            "a.png": picture(),
            "b.png": picture(),
            "sub/c.png": picture(),
            "rows.jsonl": lines(*rows),
        },
    )
    Flaky.plan |= {("read", "x.png"): [error, ...], ("list", "/sub"): [error, ...]}
    for source, path in ((images(flaky), "x.png"), (rows_of(flaky), "rows.jsonl")):
        metrics, found, rejects = take(source)
        assert metrics["records"] == 2 and metrics["rejects"] == 2
        ((message, found_code),) = [(m, c) for (p, c), m in rejects.items() if p == path]
        assert found_code == code and said in message
    if code == "missing_file":
        return  # the name is looked for under another spelling
    calls = sum(call.endswith("read /in/x.png") for call in Flaky.calls)
    assert calls == (8 if retrying.passes(error) else 2)


def test_a_jsonl_file_that_fails_is_a_reject_and_what_was_read_of_it_stays(flaky, monkeypatch):
    monkeypatch.setattr(roots, "_BLOCK", 64)
    many = lines(*({"text": f"text number {i}"} for i in range(40)))
    put(flaky, {"torn.jsonl": many, "ok.jsonl": lines({"text": "fine"}), "shut.jsonl": many, "gone.jsonl": many})
    Flaky.plan |= {
        ("open", "shut.jsonl"): [PermissionError("no"), ...],
        ("open", "gone.jsonl"): [FileNotFoundError("no"), ...],
        ("block", "torn.jsonl"): [OSError(errno.EIO, "EIO")] * 2,
    }
    source = {"kind": "jsonl", "uri": flaky, "text_field": "text"}
    metrics, rows, rejects = take(source)
    assert metrics["records"] == 41 and len([1 for path, _ in rows if path == "torn.jsonl"]) == 40
    assert set(rejects) == {("shut.jsonl", "unreadable"), ("gone.jsonl", "missing_file")}
    Flaky.plan[("block", "torn.jsonl")] = [OSError(errno.EIO, "EIO"), ...]
    metrics, rows, rejects = take(source)
    assert ("torn.jsonl", "unreadable") in rejects
    assert rows["torn.jsonl", 1]["text"] == "text number 0" and metrics["rejects"] == 3


def test_a_root_that_cannot_be_listed_is_an_error_that_says_why(flaky):
    put(flaky, {"a.png": picture()})
    Flaky.plan[("list", "/in")] = [ClientError(), ...]
    with pytest.raises(InputError, match="ClientError") as caught:
        take(images(flaky))
    assert caught.value.field == "sources.0.uri"


@pytest.mark.parametrize("error", [RecursionError("deep"), MemoryError(), KeyError("x"), ZeroDivisionError("0")])
def test_whatever_a_decoder_raises_costs_its_item_alone(tmp_path, monkeypatch, error):
    bad, real = picture(), rows.media.probe_image

    def probe(data, limits):
        if data == bad:
            raise error
        return real(data, limits)

    monkeypatch.setattr(rows.media, "probe_image", probe)
    put(
        tmp_path,
        {
            "a.png": picture(),
            "x.png": bad,
            "rows.jsonl": lines({"image": "x.png"}, {"image": "a.png"}),
            "x.md": "![](x.png)",
            "y.md": "![](a.png)",
        },
    )
    for source in (images(tmp_path), rows_of(tmp_path), {"kind": "interleaved", "uri": str(tmp_path)}):
        metrics, _, rejects = take(source)
        ((key, message),) = rejects.items()
        assert metrics["records"] == 1 and key[1] == "failed" and type(error).__name__ in message


# ---- links and names ----


@pytest.fixture
def snapshot(tmp_path):
    """A folder as the hub's client leaves it: files that are links to blobs elsewhere."""
    put(
        tmp_path,
        {
            "blobs/1": picture(),
            "blobs/2": picture(),
            "blobs/m": lines({"file_name": "a.png", "text": "A"}, {"file_name": "sub/b.png", "text": "B"}),
        },
    )
    revision = tmp_path / "snapshots" / "rev"
    (revision / "sub").mkdir(parents=True)
    (revision / "a.png").symlink_to("../../blobs/1")
    (revision / "sub" / "b.png").symlink_to("../../../blobs/2")
    (revision / "metadata.jsonl").symlink_to("../../blobs/m")
    return revision


def test_a_snapshot_of_links_is_read_where_that_is_asked_for(snapshot):
    with pytest.raises(InputError, match="outside_root 2; the first: .*follow_links: true"):
        take(images(snapshot))
    _, rows, rejects = take(images(snapshot, follow_links=True))
    assert {path: row["captions"] for (path, _), row in rows.items()} == {"a.png": ["A"], "sub/b.png": ["B"]}
    assert rejects == {}


def test_followed_folders_are_met_once_and_make_no_circle(tmp_path):
    put(
        tmp_path,
        {
            "root/own.png": picture(),
            "root/.hidden/h.png": picture(),
            "out/x.png": picture(),
            "out/deep/y.png": picture(),
            "out/.secret/s.png": picture(),
        },
    )
    for link, target in {
        "root/linked": "../out",
        "root/once_more": "../out/deep",
        "root/up": "..",
        "root/self": ".",
        "root/hid": ".hidden",
        "out/back": "../root",
        "out/round": ".",
    }.items():
        (tmp_path / link).symlink_to(target)
    _, rows, rejects = take(images(tmp_path / "root"))
    assert {path for path, _ in rows} == {"own.png"}
    assert set(rejects) == {(path, "outside_root") for path in ("linked", "once_more", "up", "hid")}
    assert all("follow_links" in message for message in rejects.values())
    metrics, rows, rejects = take(images(tmp_path / "root", follow_links=True))
    assert {path for path, _ in rows} == {"own.png", "hid/h.png", "linked/x.png", "linked/deep/y.png"}
    assert metrics["duplicates"] == 0 and {code for _, code in rejects} == {"repeated"}


def test_rows_of_a_jsonl_follow_links_only_where_that_is_asked_for(snapshot):
    put(snapshot, {"rows.jsonl": lines({"image": "a.png"}, {"image": "sub/b.png"})})
    put(snapshot, {"own.png": picture(), "more.jsonl": lines({"image": "own.png"})})
    _, rows, rejects = take(rows_of(snapshot, exclude="metadata.jsonl"))
    assert set(rows) == {("more.jsonl", 1)} and "follow_links" in rejects["rows.jsonl", "outside_root"]
    _, rows, rejects = take(rows_of(snapshot, exclude="metadata.jsonl", follow_links=True))
    assert len(rows) == 3 and rejects == {}


def test_rows_reach_what_media_root_holds_and_nothing_else(tmp_path):
    put(
        tmp_path,
        {
            "set/images/a.png": picture(),
            "set/images/b.png": picture(),
            "secret.png": picture(),
            "set/annotations/sub/rows.jsonl": lines(
                {"image": "../../images/a.png"},
                {"image": "images/b.png"},
                {"image": "../../../secret.png"},
                {"image": str(tmp_path / "secret.png")},
                {"image": "/images/none.png"},
            ),
        },
    )
    source = rows_of(tmp_path / "set" / "annotations")
    with pytest.raises(InputError, match="media_root"):
        take(source)
    for media_root in (tmp_path / "set", f"{tmp_path}/set/annotations/../"):
        metrics, rows, rejects = take({**source, "media_root": str(media_root)})
        assert set(rows) == {("sub/rows.jsonl", 1), ("sub/rows.jsonl", 2)} and metrics["rejects"] == 3
    config = ingest.Config.model_validate({"sources": [{**source, "media_root": str(tmp_path / "set")}]})
    before = ingest.listing(config)
    put(tmp_path, {"set/images/a.png": picture() + b"more"})
    assert ingest.listing(config) != before


@pytest.mark.parametrize("where", ["local", "memory"])
def test_one_file_names_what_lies_beside_it(tmp_path, where):
    root = str(tmp_path) if where == "local" else f"memory://one-{time.monotonic_ns()}"
    put(
        root,
        {
            "set/a.png": picture(),
            "set/sub/b.png": picture(),
            "c.png": picture(),
            "set/d.md": "x ![](sub/b.png)",
            "set/rows.jsonl": lines({"image": "a.png"}, {"image": "sub/b.png"}, {"image": "../c.png"}),
        },
    )
    source = rows_of(f"{root}/set/rows.jsonl")
    _, rows, rejects = take(source)
    assert {part for _, part in rows} == {1, 2} and set(rejects) == {("rows.jsonl", "outside_root")}
    _, rows, rejects = take({**source, "media_root": root})
    assert {part for _, part in rows} == {1, 2, 3} and rejects == {}
    _, rows, _ = take({"kind": "interleaved", "uri": f"{root}/set/d.md"})
    assert [segment["type"] for segment in rows["d.md", 0]["segments"]] == ["text", "image"]


@pytest.mark.parametrize("form, other", [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_are_the_same_however_they_are_composed(tmp_path, form, other):
    name = "vidéos d'été/プールで café.png"
    there, said = (unicodedata.normalize(f, name) for f in (form, other))
    half = unicodedata.normalize(form, name.split("/")[0]) + "/" + unicodedata.normalize(other, name.split("/")[1])
    put(
        tmp_path,
        {
            there: picture(),
            "rows.jsonl": lines({"image": said, "caption": "x"}),
            "half.jsonl": lines({"image": half, "caption": "y"}),
            "m.jsonl": lines({"file": half, "caption": "m"}),
            "a.md": f"![x](<{said}>)",
        },
    )
    _, rows, _ = take(rows_of(tmp_path, include=["rows.jsonl", "half.jsonl"]))
    (row,) = rows.values()
    assert row["captions"] == ["y", "x"]
    _, rows, _ = take(images(tmp_path, captions={"manifest": "m.jsonl"}))
    assert [row["captions"] for row in rows.values()] == [["m"]]
    _, rows, _ = take({"kind": "interleaved", "uri": str(tmp_path)})
    assert [s["type"] for s in rows["a.md", 0]["segments"]] == ["image"]


def test_a_name_is_taken_as_it_is_written_before_it_is_read_as_a_url(tmp_path):
    names = ["50%20off.png", "a b.png", "plus+.png", "back\\slash.png", "sub/c.png"]
    put(tmp_path, {name: picture() for name in names})
    said = [
        "50%20off.png",
        "a%20b.png",
        "plus+.png",
        "back\\slash.png",
        "sub\\c.png",
        "/sub/c.png",
        str(tmp_path / "sub" / "c.png"),
        f"file://{tmp_path}/sub/c.png",
    ]
    put(tmp_path, {"rows.jsonl": lines(*({"image": name, "caption": str(i)} for i, name in enumerate(said)))})
    _, rows, rejects = take(rows_of(tmp_path))
    assert rejects == {} and [row["captions"] for row in rows.values()] == [
        ["0"],
        ["1"],
        ["2"],
        ["3"],
        ["4", "5", "6", "7"],
    ]


def test_home_is_expanded_and_a_missing_root_is_told_in_full(tmp_path, monkeypatch):
    put(tmp_path, {"pics/a.png": picture()})
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for uri in ("~/pics", "pics", f"file://{tmp_path}/pics"):
        assert set(take(images(uri))[1]) == {("a.png", 0)}
    with pytest.raises(InputError, match=f"no such file or folder: {tmp_path}/nowhere"):
        take(images("nowhere"))


@pytest.mark.parametrize(
    "files, kind, said",
    [
        ({"a.png": b"x", "b.jpg": b"x"}, "text", "2 look like image_folder, which `{kind: image_folder, uri: "),
        ({"a.mp4": b"x"}, "image_folder", "1 look like video_folder, which `{kind: video_folder, uri: "),
        ({"a.jsonl": b"x"}, "text", "text_field: text}` reads"),
        ({"a.tar": b"x"}, "image_folder", "1 .tar, which no kind reads; `{kind: image_folder, uri: "),
        ({"a.zip": b"x"}, "text", "a.zip}` looks into one of them"),
        ({}, "text", "an empty folder, no file of kind text"),
    ],
)
def test_an_empty_source_says_what_its_files_look_like(tmp_path, files, kind, said):
    put(tmp_path, files)
    with pytest.raises(InputError) as caught:
        take({"kind": kind, "uri": str(tmp_path)})
    assert said in caught.value.message
