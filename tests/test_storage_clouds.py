"""Checkpoints in object stores: real gcsfs and s3fs against emulators of Google's and Amazon's stores."""

from __future__ import annotations

import os
import socket
import uuid

import fsspec
import pytest
from fsspec.asyn import sync
from storage_toys import contents, step_of

from imagen_pytorch.checkpoint import CheckpointStore
from imagen_pytorch.checkpoints import (
    CheckpointLocked,
    CheckpointMissing,
    CheckpointNotWritten,
    read_checkpoint,
    write_checkpoint,
)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def google():
    """A server, and a filesystem that talks to it."""
    # asked over another protocol, which the emulator does not speak, for a minute; looked at when gcsfs is imported
    os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
    emulator = pytest.importorskip("gcp_storage_emulator.server", reason="gcp-storage-emulator is not installed")
    pytest.importorskip("gcsfs", reason="gcsfs is not installed")
    port = free_port()
    server = emulator.create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
    server.start()
    return server, {"token": "anon", "endpoint_url": f"http://127.0.0.1:{port}"}


def amazon():
    """As `google`."""
    moto = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = {"key": "t", "secret": "t", "endpoint_url": f"http://{host}:{port}"}
    fsspec.filesystem("s3", **options).mkdir("bucket")
    return server, options


STORES = {"gs": google, "s3": amazon}


@pytest.fixture(scope="module", params=STORES)
def store(request):
    """The kind of store, and arguments for its filesystem."""
    server, options = STORES[request.param]()
    yield request.param, options
    server.stop()


@pytest.fixture
def place(store):
    """A new folder's URL, and arguments for its filesystem."""
    return f"{store[0]}://bucket/{uuid.uuid4().hex}", store[1]


async def google_part(fs, path):
    """An upload that is begun and never completed."""
    from gcsfs.core import initiate_upload, upload_chunk

    bucket, key, _ = fs.split_path(path)
    where = await initiate_upload(fs, bucket, key)
    await upload_chunk(fs, where, b"x" * 2**18, 0, 2**20, "application/octet-stream")


async def amazon_part(fs, path):
    """As `google_part`."""
    bucket, key, _ = fs.split_path(path)
    begun = await fs._call_s3("create_multipart_upload", Bucket=bucket, Key=key)
    await fs._call_s3("upload_part", Bucket=bucket, Key=key, PartNumber=1, UploadId=begun["UploadId"], Body=b"x" * 999)


def let_connection_die(monkeypatch, fs, times):
    """After a part of an upload the connection ends, the first so many times; the list gets longer at each attempt."""
    good, attempts = fs.put_file, []
    part = google_part if "gs" in fs.protocol else amazon_part

    def put_file(local, path):
        attempts.append(path)
        if len(attempts) > times:
            return good(local, path)
        sync(fs.loop, part, fs, path)
        raise ConnectionResetError("connection reset by peer")

    monkeypatch.setattr(fs, "put_file", put_file)
    return attempts


def test_write_overwrite_and_read(place):
    url, options = place
    with pytest.raises(CheckpointMissing, match=f"no checkpoint at {url}/a.pt"):
        read_checkpoint(f"{url}/a.pt", fs_kwargs=options)
    for step in (1, 2):
        for kind in ("pt", "safetensors"):
            path = f"{url}/deep/er/a.{kind}"
            write_checkpoint(contents(step), path, fs_kwargs=options, keep_previous=True)
            assert step_of(read_checkpoint(path, fs_kwargs=options)) == step
    assert step_of(read_checkpoint(f"{url}/deep/er/a.previous.pt", fs_kwargs=options)) == 1
    with pytest.raises(CheckpointNotWritten, match="exists already"):
        write_checkpoint(contents(3), path, fs_kwargs=options, overwrite=False)


def test_a_folder_turns_over_and_locks(place):
    url, options = place
    first = CheckpointStore(url, keep=2, fs_kwargs=options)
    assert first.steps() == [] and first.read() is None
    first.lock()
    for step in (8, 9, 10):
        first.write(step, contents(step))
    assert first.steps() == [10, 9]
    second = CheckpointStore(url, keep=2, fs_kwargs=options)
    path, found = second.read()
    assert step_of(found) == 10 and path.endswith("checkpoint.10.pt")
    second.lock()
    with pytest.raises(CheckpointLocked, match="has taken over"):
        first.write(11, contents(11))
    second.fs.pipe_file(f"{second.folder}/checkpoint.11/manifest.json", b"{}")
    assert second.steps() == [11, 10, 9] and second.paths()[0].endswith("/checkpoint.11")
    second.fs.pipe_file(second.path(12), b"PK")
    second.fs.rm(f"{second.folder}/checkpoint.11", recursive=True)
    with pytest.warns(UserWarning, match="checkpoint.12.pt.*the one before it is taken instead"):
        assert step_of(second.read()[1]) == 10
    second.unlock()
    first.unlock()


def test_a_connection_that_dies_in_the_middle_leaves_the_old_object(place, monkeypatch):
    url, options = place
    store = CheckpointStore(url, fs_kwargs=options)
    store.write(1, contents(1))
    with monkeypatch.context() as patch:
        attempts = let_connection_die(patch, store.fs, times=3)
        with pytest.raises(CheckpointNotWritten, match=r"write .*1.pt .*: connection reset by peer; what was"):
            store.write(1, contents(2))
    assert len(attempts) == 3 and step_of(store.read()[1]) == 1
    attempts = let_connection_die(monkeypatch, store.fs, times=2)
    store.write(1, contents(3))
    assert len(attempts) == 3 and step_of(store.read()[1]) == 3 and store.steps() == [1]


def test_a_listing_that_lags_behind(place, monkeypatch):
    url, options = place
    store = CheckpointStore(url, fs_kwargs=options)
    store.write(1, contents(1))
    old = store.fs.ls(store.folder, detail=False)
    store.write(2, contents(2))
    monkeypatch.setattr(store.fs, "ls", lambda path, detail=True: old)
    assert store.steps() == [2, 1] and step_of(store.read()[1]) == 2
    store.fs.rm_file(store.path(1))  # listed, and gone
    other = CheckpointStore(url, fs_kwargs=options)
    assert other.steps() == [1] and other.read() is None and step_of(store.read()[1]) == 2


def test_a_bucket_that_does_not_exist_has_a_sentence_and_is_not_made(store):
    kind, options = store
    url = f"{kind}://no-such-bucket"
    with pytest.raises(CheckpointNotWritten, match=f"could not write {url}/a.pt "):
        write_checkpoint(contents(), f"{url}/a.pt", fs_kwargs=options)
    with pytest.raises(CheckpointMissing):
        read_checkpoint(f"{url}/a.pt", fs_kwargs=options)
    run = CheckpointStore(f"{url}/run", fs_kwargs=options)
    with pytest.raises(CheckpointNotWritten, match=f"cannot write to {url}/run: "):
        run.lock()  # known before a training begins
    assert run.steps() == [] and "no-such-bucket" not in str(run.fs.ls(""))
