"""`run_on_ray` on a cluster of this process: what it writes, resumes and refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("ray.data")


@pytest.fixture(scope="module")
def source(listed: Any, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Forty rows of six photographs, as paths and as bytes, two files that are no images and one that is lost."""
    from fvexport.export.features import Item

    text = tmp_path_factory.mktemp("text") / "text.jpg"
    text.write_text("no image")
    files = sorted(images.iterdir())
    items = []
    for number in range(40):
        file = text if number in (7, 30) else files[number % 6]
        items.append(Item(f"id/{number}", file if number % 2 else file.read_bytes()))
    items[11] = Item("id/11", None, "the shard ends in the middle of it")
    return listed(tuple(items))


def _request(encoder: Any, source: Any, **options: Any) -> Any:
    from fvexport.export.features import FeatureForm
    from fvexport.export.features.request import make_request

    form = FeatureForm(form="parquet", shard_rows=10, **options)
    return make_request(encoder.artifact, encoder.preprocessor, encoder.chosen.name, source, form, "ray")


def _read(out: Path) -> Any:
    import pyarrow as pa

    return pa.concat_tables([pq.read_table(file) for file in sorted(out.iterdir())])


def _check(out: Path, source: Any, encoder: Any, request: Any) -> None:
    """Every id is there once, with the features that `Encoder` computes, or with an error."""
    from fvexport.export.features.table import features_schema

    for file in out.iterdir():
        assert pq.read_schema(file).equals(features_schema(request), check_metadata=True)
    table = _read(out)
    rows = {one: number for number, one in enumerate(table["id"].to_pylist())}
    assert table.num_rows == len(rows) == len(source)
    assert {item.id for item in source} == set(rows)
    features, errors = table["features"].combine_chunks(), table["error"].to_pylist()
    for item in source:
        row = rows[item.id]
        if item.id in ("id/7", "id/11", "id/30"):
            assert errors[row] and not features[row].is_valid
            continue
        assert errors[row] is None
        np.testing.assert_array_equal(features[row].to_numpy(), encoder(item.data)[0])


def test_writes_and_resumes(
    cluster: Any, source: Any, artifact: Path, encoder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is left as by a run that was killed; what is not whole in it is done again, the rest is kept."""
    from fvexport.cluster import run_on_ray
    from fvexport.cluster.work_folder import WorkFolder

    request, out = _request(encoder, source), tmp_path / "features"
    steps: list[tuple[int, int | None]] = []
    with monkeypatch.context() as patch:
        patch.setattr(WorkFolder, "finish", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            run_on_ray(source, artifact, request, out, None, lambda _, done, total: steps.append((done, total)))
    assert steps[0] == (0, 40) and not out.exists()
    (work,) = (tmp_path / ".features.encoding").glob("ray-*")
    files, checkpoints = (sorted((work / name).iterdir()) for name in ("data", "checkpoint"))
    assert len(files) == len(checkpoints) >= 3
    kept = files[-1].stat().st_ino
    files[0].write_bytes(files[0].read_bytes()[:-100])  # cut off while Ray repeated the write
    checkpoints[1].rename(checkpoints[1].with_suffix(".pending.parquet"))
    (work / "data" / "of_a_lost_worker-0.parquet").write_bytes(files[2].read_bytes())

    report = run_on_ray(source, artifact, request, out, None, lambda _, done, total: steps.append((done, total)))
    assert report.encoded == 37 and {name for name, _ in report.failed} == {"id/7", "id/11", "id/30"}
    assert steps[-1] == (40, 40) and any(0 < done < 40 for done, _ in steps)
    _check(out, source, encoder, request)
    assert kept in [file.stat().st_ino for file in out.iterdir()]  # not written again
    assert sorted(file.name for file in out.iterdir())[0] == "part-00000.parquet"
    assert [file.name for file in tmp_path.iterdir()] == ["features"]


@pytest.mark.parametrize("moment", ["result moved", "exchanged with another output", "exchanged with the same"])
def test_killed_when_the_result_is_put_in_place(
    cluster: Any, source: Any, artifact: Path, encoder: Any, tmp_path: Path, moment: str
) -> None:
    """Each time the output is not taken for what it is not."""
    from fvexport.cluster import run_on_ray
    from fvexport.cluster.work_folder import COMPLETE, WorkFolder
    from fvexport.export.features.working_folder import WorkingFolder

    request, out = _request(encoder, source), tmp_path / "features"
    other = request.replace(dtype="float16")
    working = WorkingFolder(out)
    with working.held(request, force=False):
        (working.path / "ray-000001").mkdir()
        (working.path / "ray-000001" / COMPLETE).touch()
        if moment != "result moved":
            _write(working.path / "ray-000001" / "data", source, encoder, request if "same" in moment else other)
        working.mark_placing()
        working.keep = True
    if moment == "result moved":  # and the user moved the output away
        with WorkingFolder(out).held(request, force=False):
            work = WorkFolder(WorkingFolder(out), request)
            assert not work.is_complete and work.settle() == 0
        return
    _write(out, source, encoder, request)
    before = sorted(path.stat().st_ino for path in out.iterdir())
    report = run_on_ray(source, artifact, request, out, force=True)
    assert report.resumed == len(source)  # nothing was done
    assert sorted(path.stat().st_ino for path in out.iterdir()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["features"]


def _write(folder: Path, source: Any, encoder: Any, request: Any) -> None:
    """A dataset of the source, by hand."""
    import pyarrow.parquet as pq

    from fvexport.export.features.table import features_schema, features_table

    folder.mkdir()
    ids = [item.id for item in source]
    values = np.zeros((len(ids), *request.shape), request.dtype)
    pq.write_table(
        features_table(ids, values, [None] * len(ids), features_schema(request)), folder / "part-00000.parquet"
    )
