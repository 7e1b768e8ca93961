"""Runs that end early go on: nothing is lost, nothing is there twice, and the result is that of one whole run."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import sys
import tarfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load_file

from fvexport.core.errors import ArtifactError, ConfigError
from fvexport.export.features import FeatureForm, Request, encode_images
from fvexport.export.features.encode import EncodeReport, files
from fvexport.export.features.existing import check_output
from fvexport.export.features.output import open_output
from fvexport.export.features.pending import Pending
from fvexport.export.features.request import make_request
from fvexport.export.features.working_folder import WorkingFolder

FORMS = [
    FeatureForm(form="safetensors"),
    FeatureForm(form="parquet", shard_rows=5),
    FeatureForm(form="npy", shard_rows=4, pool="mean", dtype="float16"),
]


@pytest.fixture(scope="module")
def encoder(exported):
    from fvexport.export.runtime import Encoder

    return Encoder(exported(height=64, width=64), "onnxruntime-cpu")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Thirteen, of which two cannot be read."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for index in range(13):
        path = folder / f"{index:02}.png"
        if index in (3, 9):
            path.write_text("no image")
        else:
            Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(path)
    return sorted(folder.iterdir())


def content(out: Path) -> dict[str, np.ndarray | None]:
    """Every image of an output and its features, or None; fails if one is there twice."""
    rows: list[tuple[str, np.ndarray | None]] = []
    if out.is_file():
        rows += load_file(out).items()
    elif (out / "errors").exists():
        for array in sorted((out / "img_emb").iterdir()):
            number = array.stem.removeprefix("img_emb_")
            names = pq.read_table(out / "metadata" / f"metadata_{number}.parquet").column("image_path").to_pylist()
            rows += zip(names, np.load(array), strict=True)
        for path in sorted((out / "errors").iterdir()):
            rows += [(name, None) for name in pq.read_table(path).column("id").to_pylist()]
    else:
        for path in sorted(out.glob("part-*.parquet")):
            table = pq.read_table(path)
            shape = table.schema.field("features").type.shape
            for row in table.to_pylist():
                assert (row["features"] is None) == (row["error"] is not None)
                value = None if row["features"] is None else np.array(row["features"]).reshape(shape)
                rows.append((row["id"], value))
    assert len({name for name, _ in rows}) == len(rows)
    return dict(rows)


def same(one: dict[str, np.ndarray | None], other: dict[str, np.ndarray | None]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def interrupt(images: list[Path], encoder, out: Path, form: FeatureForm, moment: int) -> None:
    """A run that ends after `moment` images."""

    def stop(_task: str, done: int, _total: int | None) -> None:
        if done == moment:
            raise StopHere

    with pytest.raises(StopHere):
        encode_images(images, encoder, out, form=form, progress=stop)


class StopHere(Exception):  # noqa: N818  # an order, not an error
    pass


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.form)
@pytest.mark.parametrize("moments", [[1], [2, 3, 4, 7, 8, 12], [5, 10], [13]])
def test_interrupted_and_continued(tmp_path: Path, encoder, images, form: FeatureForm, moments: list[int]) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    encode_images(images, encoder, whole, form=form)

    def run(until: int | None) -> EncodeReport:
        def progress(_task: str, done: int, _total: int | None) -> None:
            if done == until:
                raise StopHere

        return encode_images(images, encoder, out, form=form, progress=progress)

    for moment in moments:
        with pytest.raises(StopHere):
            run(moment)
        assert not out.exists() and (tmp_path / ".out.encoding").exists()
    report = run(None)
    assert report.resumed == moments[-1]
    assert (report.encoded, report.failed_count) == (11, 2)
    assert [name for name, _ in report.failed] == [images[3].as_posix(), images[9].as_posix()]
    assert same(content(out), content(whole))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.form)
def test_a_finished_run_has_nothing_to_do(tmp_path: Path, encoder, images, form: FeatureForm, monkeypatch) -> None:
    out = tmp_path / "out"
    first = encode_images(images, encoder, out, form=form)
    monkeypatch.setattr(encoder, "run", lambda _pixels: pytest.fail("worked"))
    again = encode_images(images, encoder, out, form=form)
    assert (again.encoded, again.failed_count, again.resumed) == (first.encoded, first.failed_count, 13)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.form)
def test_another_request_is_refused(tmp_path: Path, encoder, images, form: FeatureForm, exported) -> None:
    from fvexport.export.runtime import Encoder

    out = tmp_path / "out"

    def stop(_task: str, done: int, _total: int | None) -> None:
        if done == 6:
            raise StopHere

    with pytest.raises(StopHere):
        encode_images(images, encoder, out, form=form, progress=stop)
    other = FeatureForm(
        form=form.form,
        dtype="float16" if form.dtype == "float32" else "float32",
        pool=form.pool,
        shard_rows=form.shard_rows,
    )
    with pytest.raises(ArtifactError, match=r"another --dtype .*--force"):
        encode_images(images, encoder, out, form=other)
    with pytest.raises(ArtifactError, match=r"another source \(13 images, now 12\)"):
        encode_images(images[:-1], encoder, out, form=form)
    another = Encoder(exported(height=64, width=64, precision="fp16"), "onnxruntime-cpu")
    with pytest.raises(ArtifactError, match="another artifact"):
        encode_images(images, another, out, form=form)
    grown = [*images[:-1], tmp_path / "grown.png"]
    grown[-1].write_bytes(images[-1].read_bytes() + b" ")
    with pytest.raises(ArtifactError, match="another source"):
        encode_images(grown, encoder, out, form=form)
    assert encode_images(images, encoder, out, form=form).resumed == 6  # all that left it alone
    with pytest.raises(ArtifactError, match="--force"):
        encode_images(images, encoder, out, form=other)
    report = encode_images(images, encoder, out, form=other, force=True)
    assert report.resumed == 0 and report.dtype == other.dtype


def test_force_drops_an_unfinished_run_of_another_request(tmp_path: Path, encoder, images) -> None:
    out = tmp_path / "out"

    def stop(_task: str, done: int, _total: int | None) -> None:
        if done == 6:
            raise StopHere

    with pytest.raises(StopHere):
        encode_images(images, encoder, out, form=FORMS[1], progress=stop)
    report = encode_images(images, encoder, out, form=FORMS[2], force=True)
    assert report.resumed == 0 and len(content(out)) == 13


def test_with_force_an_interrupted_replacement_goes_on(tmp_path: Path, encoder, images) -> None:
    out = tmp_path / "out"
    encode_images(images[:2], encoder, out, form=FORMS[1])
    old = content(out)

    def stop(_task: str, done: int, _total: int | None) -> None:
        if done == 8:
            raise StopHere

    with pytest.raises(StopHere):
        encode_images(images, encoder, out, form=FORMS[1], force=True, progress=stop)
    assert same(content(out), old)
    assert encode_images(images, encoder, out, form=FORMS[1], force=True).resumed == 8
    assert len(content(out)) == 13


def test_nothing_stays_of_a_run_that_encoded_nothing(tmp_path: Path, encoder, images, monkeypatch) -> None:
    def broken(_pixels: np.ndarray) -> np.ndarray:
        raise ArtifactError("broken")

    monkeypatch.setattr(encoder, "run", broken)
    for form in FORMS:
        with pytest.raises(ArtifactError, match="broken"):
            encode_images(images, encoder, tmp_path / "new" / "out", form=form)
        assert not list(tmp_path.iterdir())


def test_a_folder_of_something_else_is_never_replaced(tmp_path: Path, encoder, images) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    for form in FORMS[1:]:
        with pytest.raises(ArtifactError, match="not what this command writes"):
            encode_images(images, encoder, out, form=form, force=True)
    encode_images(images, encoder, tmp_path / "ours", form=FORMS[1])
    (tmp_path / "ours" / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="not what this command writes"):
        encode_images(images, encoder, tmp_path / "ours", form=FORMS[1], force=True)
    assert (out / "thesis.txt").read_text() == "years of work"


def test_options_that_make_no_sense() -> None:
    with pytest.raises(ConfigError, match="no effect"):
        FeatureForm(shard_rows=3)
    with pytest.raises(ConfigError, match="at least 1"):
        FeatureForm(form="parquet", shard_rows=0)


# --- what fails once ------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.form)
@pytest.mark.parametrize("place", ["append", "write"])
def test_a_write_that_fails_once_loses_nothing(tmp_path: Path, encoder, images, monkeypatch, form, place: str) -> None:
    """Batches that wait behind the one that failed must not take the place of its images."""
    from fvexport.export.features.output_shards import NpyShards, ParquetShards

    whole, out, calls = tmp_path / "whole", tmp_path / "out", []
    encode_images(images, encoder, whole, form=form)
    owners = [Pending] if place == "append" or form.form == "safetensors" else [ParquetShards, NpyShards]
    name = "sync" if place == "write" and form.form == "safetensors" else place
    for owner in owners:
        real = getattr(owner, name)

        def failing(*arguments: object, real=real) -> None:
            calls.append(None)
            if len(calls) == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(*arguments)

        monkeypatch.setattr(owner, name, failing)
    with contextlib.suppress(ArtifactError):
        encode_images(images, encoder, out, form=form)
    encode_images(images, encoder, out, form=form)
    assert same(content(out), content(whole))


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.form)
def test_a_run_that_fails_when_it_goes_on_keeps_what_is_done(tmp_path, encoder, images, monkeypatch, form) -> None:
    out = tmp_path / "out"
    interrupt(images, encoder, out, form, 7)
    with monkeypatch.context() as patched:
        patched.setattr(WorkingFolder, "unfinished", lambda _self: (_ for _ in ()).throw(KeyboardInterrupt))
        patched.setattr("fvexport.export.features.run.finished", lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            encode_images(images, encoder, out, form=form)
    with monkeypatch.context() as patched:
        patched.setattr(Pending, "_continue", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            encode_images(images, encoder, out, form=form)
    with monkeypatch.context() as patched:
        patched.setattr("fvexport.export.features.encode.BatchReader", lambda *_: (_ for _ in ()).throw(StopHere))
        with pytest.raises(StopHere):
            encode_images(images, encoder, out, form=form)
    assert encode_images(images, encoder, out, form=form).resumed == 7


def test_a_damaged_shard_is_told_and_force_begins_again(tmp_path: Path, encoder, images) -> None:
    out, shards = tmp_path / "out", tmp_path / ".out.encoding" / "result"
    interrupt(images, encoder, out, FORMS[1], 11)
    damaged = shards / "part-00001.parquet"
    damaged.write_bytes(damaged.read_bytes()[:100])
    for _ in range(2):
        with pytest.raises(ArtifactError, match=r"part-00001.*--force"):
            encode_images(images, encoder, out, form=FORMS[1])
    assert len(list(shards.iterdir())) == 2
    assert encode_images(images, encoder, out, form=FORMS[1], force=True).encoded == 11


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.form)
@pytest.mark.parametrize("old", [False, True])
def test_killed_between_the_result_s_place_and_the_end(tmp_path, encoder, images, monkeypatch, form, old) -> None:
    """The next run has nothing to do, with `force` and without, and removes what is left."""
    from fvexport.export.features.output import open_output as real

    out = tmp_path / "out"
    if old:
        encode_images(images[:2], encoder, out, form=form)

    def opened(*arguments):
        output = real(*arguments)
        finish = output.finish

        def killed(*, force: bool) -> None:
            finish(force=force)
            raise StopHere

        output.finish = killed
        return output

    with monkeypatch.context() as patched:
        patched.setattr("fvexport.export.features.encode.open_output", opened)
        with pytest.raises(StopHere):
            encode_images(images, encoder, out, form=form, force=old)
    assert len(content(out)) >= 11 and (tmp_path / ".out.encoding").exists()
    monkeypatch.setattr(encoder, "run", lambda _pixels: pytest.fail("worked"))
    assert encode_images(images, encoder, out, form=form, force=old).resumed == 13
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.form)
def test_a_run_that_waited_for_another_one_has_nothing_to_do(tmp_path, encoder, images, monkeypatch, form) -> None:
    """The other one ended after this one had looked, and before it held the working folder."""
    out, held = tmp_path / "out", WorkingFolder.held

    def later(self, *arguments, **options):
        monkeypatch.setattr(WorkingFolder, "held", held)
        encode_images(images, encoder, out, form=form)
        monkeypatch.setattr(encoder, "run", lambda _pixels: pytest.fail("worked"))
        return held(self, *arguments, **options)

    monkeypatch.setattr(WorkingFolder, "held", later)
    assert encode_images(images, encoder, out, form=form).resumed == 13
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_read_is_never_replaced(tmp_path: Path, encoder, images, monkeypatch) -> None:
    import pyarrow as pa

    from fvexport.export.features import open_source

    monkeypatch.chdir(tmp_path)
    pq.write_table(pa.table({"image": [images[0].read_bytes()]}), "t.parquet")
    Path("list.txt").write_text(f"{images[0]}\n")
    with tarfile.open("t.tar", "w") as tar:
        tar.add(images[0], "0.png")
    for name in ("t.parquet", "@list.txt", "t.tar"):
        path = Path(name.removeprefix("@"))
        before = path.read_bytes()
        with pytest.raises(ArtifactError, match="that are read"):
            encode_images(open_source([name]), encoder, path, force=True)
        assert path.read_bytes() == before
    artifact = encoder.artifact.path
    for inside in (artifact / "manifest.json", artifact):
        with pytest.raises(ArtifactError, match="part of the artifact"):
            encode_images(images, encoder, inside, force=True)


def test_an_output_among_the_tables_that_are_read(tmp_path: Path, encoder, images, monkeypatch) -> None:
    import pyarrow as pa

    from fvexport.export.features import open_source

    monkeypatch.chdir(tmp_path)
    Path("tables").mkdir()
    pq.write_table(pa.table({"image": [images[0].read_bytes()]}), "tables/t.parquet")
    out = Path("tables/out.parquet")
    for resumed in (0, 1):
        source = open_source(["tables"], leave_out=out)
        assert encode_images(source, encoder, out, form=FORMS[1]).resumed == resumed


def test_a_link_to_a_folder_is_followed(tmp_path: Path, encoder, images) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    encode_images(images, encoder, tmp_path / "out", form=FORMS[1])
    assert (tmp_path / "out").is_symlink() and len(content(tmp_path / "disk")) == 13


# --- killed -----------------------------------------------------------------------------------------


def request_for(form: FeatureForm, count: int) -> Request:
    return Request(
        artifact_sha256="a", checkpoint_sha256="b", resolution="64x64", preprocessing={}, backend="x", form=form.form,
        pool=form.pool, dtype=form.dtype, shard_rows=form.rows(2, 3) if form.form != "safetensors" else 0, tokens=2,
        channels=3, source_sha256=files([f"{i}.png" for i in range(count)]).digest, images=count,
    )  # fmt: skip


def write(out: Path, form: FeatureForm, count: int, begun: int | None = None) -> int:
    """Writes `count` images by the output's own means, one after another; returns how many were there before.

    Says so on the descriptor `begun` when it begins.
    """
    request, source = request_for(form, count), files([f"{i}.png" for i in range(count)])
    working = WorkingFolder(out)
    check_output(out, request, source, force=False, have_bytes=working.size())
    with working.held(request, force=False):
        output = open_output(working, request, source)
        before = output.done
        working.keep = True
        if begun is not None:
            os.write(begun, b"!")
        for index in range(output.done, count):
            bad = index % 7 == 3
            value = np.full((1, *request.shape), index, request.dtype)[: 0 if bad else 1]
            output.append([f"{index}.png"], value, ["bad" if bad else None])
        output.finish(force=False)
        working.keep = False
        output.close(flush=False)
    return before


@pytest.mark.skipif(sys.platform != "linux", reason="forks and kills")
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.form)
def test_killed_at_random_moments(tmp_path: Path, form: FeatureForm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty SIGKILLs; the rows are synced after every image here, as if each took a second."""
    monkeypatch.setattr("fvexport.export.features.pending.SYNC_SECONDS", 0.0)
    out, rng, count = tmp_path / "out", random.Random(0), 1000
    reading, writing = os.pipe()
    for _ in range(20):
        child = os.fork()
        if child == 0:
            with suppress(BaseException):
                write(out, form, count, writing)
            os._exit(0)
        os.read(reading, 1)
        time.sleep(rng.uniform(0.002, 0.02))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    before = write(out, form, count)
    assert 10 < before < count  # what the killed runs did was not done again
    found = content(out)
    wanted = {f"{i}.png" for i in range(count) if form.form != "safetensors" or i % 7 != 3}
    assert found.keys() == wanted
    for name, value in found.items():
        index = int(name.removesuffix(".png"))
        assert (value is None) == (index % 7 == 3)
        assert value is None or (value == index).all()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.fixture
def pending_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pending")
    return folder / "rows", folder / "journal"


@settings(max_examples=60, deadline=None)
@given(
    failed=st.lists(st.booleans(), min_size=1, max_size=12),
    cut_rows=st.integers(0, 200),
    cut_journal=st.integers(0, 200),
    offset=st.sampled_from([0, 8, 40]),
)
def test_files_that_are_cut_off_anywhere(
    tmp_path_factory: pytest.TempPathFactory, failed: list[bool], cut_rows: int, cut_journal: int, offset: int
) -> None:
    """What is left is a beginning of what was written, each image with its own row."""
    folder = tmp_path_factory.mktemp("cut")
    names = [f"naïve {index} \n🐈" for index in range(len(failed))]
    rows, journal = folder / "rows", folder / "journal"
    pending = Pending(rows, journal, names, (2,), "float32", offset)
    for index, (name, bad) in enumerate(zip(names, failed, strict=True)):
        pending.append([name], np.full((0 if bad else 1, 2), index, np.float32), ["why" if bad else None])
    pending.close()
    os.truncate(rows, max(0, rows.stat().st_size - cut_rows))
    os.truncate(journal, max(0, journal.stat().st_size - cut_journal))
    again = Pending(rows, journal, [*names, "new"], (2,), "float32", offset)
    found, reasons = again.entries()
    assert found == names[: len(found)] and [reason is not None for reason in reasons] == failed[: len(found)]
    good = [index for index, bad in enumerate(failed[: len(found)]) if not bad]
    assert again.values()[:, 0].tolist() == good
    assert rows.stat().st_size <= offset + 8 * len(good)
    if cut_rows == cut_journal == 0:
        assert found == names
    again.append(["new"], np.full((1, 2), -1, np.float32), [None])
    assert again.values()[:, 0].tolist() == [*good, -1] and again.entries()[0][-1] == "new"
    again.close()


@pytest.mark.parametrize("line", [b"{}\n", b"[]\n", b'["b", "c", "d"]\n', b"[1]\n", b"\xff\n", b"\0" * 50, b'["c"]\n'])
def test_a_journal_is_taken_up_to_what_is_not_wanted(pending_files: tuple[Path, Path], line: bytes) -> None:
    """As after a loss of power."""
    rows, journal = pending_files
    journal.write_bytes(b'["a", "failed"]\n' + line + b'["c", "failed"]\n')
    pending = Pending(rows, journal, ["a", "b", "c"], (2,), "float32")
    assert pending.entries() == (["a"], ["failed"]) and journal.read_bytes() == b'["a", "failed"]\n'
    pending.append(["b"], np.zeros((1, 2), np.float32), [None])
    pending.close()
    assert journal.read_bytes() == b'["a", "failed"]\n["b"]\n'


def test_a_write_of_the_journal_that_fails_half_way_is_repeated_whole(pending_files, monkeypatch) -> None:
    rows, journal = pending_files
    pending = Pending(rows, journal, ["a", "b"], (2,), "float32")
    real = pending._journal

    class Full:
        """Writes a few bytes, and then the disk is full."""

        def __getattr__(self, name: str):
            return getattr(real, name)

        def write(self, data: memoryview) -> int:
            if len(data) > 5:
                return real.write(data[:5])
            raise OSError(errno.ENOSPC, "No space left on device")

    pending.append(["a", "b"], np.zeros((0, 2), np.float32), ["x" * 5, "y" * 5])
    monkeypatch.setattr(pending, "_journal", Full())
    with pytest.raises(OSError, match="No space"):
        pending.sync()
    monkeypatch.setattr(pending, "_journal", real)
    pending.close()
    assert journal.read_bytes() == b'["a","xxxxx"]\n["b","yyyyy"]\n'


def test_another_version_goes_on(tmp_path: Path, encoder, images, monkeypatch) -> None:
    """The rows of a safetensors file lie behind a header that has the version's name in it."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    encode_images(images, encoder, whole)
    interrupt(images, encoder, out, FORMS[0], 9)
    real = make_request
    monkeypatch.setattr(
        "fvexport.export.features.encode.make_request", lambda *given: real(*given).replace(fvexport="9.9.9.post123456")
    )
    assert encode_images(images, encoder, out).resumed == 9
    assert same(content(out), content(whole))


def test_force_over_a_damaged_output_that_was_about_to_be_replaced(
    tmp_path: Path, encoder, images, monkeypatch
) -> None:
    for form in FORMS:
        out = tmp_path / form.form
        encode_images(images, encoder, out, form=form)
        damaged = out if out.is_file() else next(path for path in sorted(out.rglob("*")) if path.is_file())
        damaged.write_bytes(damaged.read_bytes()[:-20])
        with monkeypatch.context() as patched:
            for name in ("put_file", "put_folder"):
                patched.setattr(
                    f"fvexport.export.features.output.{name}", lambda *_, **__: (_ for _ in ()).throw(StopHere)
                )
            with pytest.raises(StopHere):
                encode_images(images, encoder, out, form=form, force=True)
        assert encode_images(images, encoder, out, form=form, force=True).encoded == 11
        assert len([value for value in content(out).values() if value is not None]) == 11


def test_the_lock_alone_is_removed(tmp_path: Path, encoder, images) -> None:
    out = tmp_path / "out"
    encode_images(images, encoder, out)
    (tmp_path / ".out.encoding").mkdir()
    (tmp_path / ".out.encoding" / "lock").touch()
    encode_images(images, encoder, out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_outputs_that_are_refused(tmp_path: Path, encoder, images, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError, match="current folder"):
        encode_images(images, encoder, ".", form=FORMS[1])
    with pytest.raises(ArtifactError, match="part of the artifact"):
        encode_images(images, encoder, encoder.artifact.path / "new.safetensors")
    with pytest.raises(ConfigError, match="list of files"):
        encode_images("photos", encoder, "out.safetensors")
    encode_images(images, encoder, "out.safetensors")
    with pytest.raises(ArtifactError, match=r"another --pool \(none, now mean\).*--force"):
        encode_images(images, encoder, "out.safetensors", form=FeatureForm(pool="mean"))
    assert not list(encoder.artifact.path.glob("*new*"))


def test_a_damaged_record_of_the_run_is_refused(tmp_path: Path, encoder, images) -> None:
    out, folder = tmp_path / "out", tmp_path / ".out.encoding"
    folder.mkdir()
    (folder / "run.json").write_text('{"images": "many"}')
    with pytest.raises(ArtifactError, match="is damaged"):
        encode_images(images, encoder, out)
    assert (folder / "run.json").exists()
    assert encode_images(images, encoder, out, force=True).encoded == 11


def test_a_link_in_the_place_of_the_working_folder_is_refused(tmp_path: Path, encoder, images) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".out.encoding").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="link"):
        encode_images(images, encoder, tmp_path / "out")
    assert not list((tmp_path / "elsewhere").iterdir())
