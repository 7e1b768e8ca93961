"""Hostile files: what they hold is refused, or stays what it is, text.

Each attack is refused with one line, or does no harm: no memory and no file outside is read, nothing reaches a
generated file, a terminal, a spreadsheet or a page but as text, nothing but files and our own folders is replaced or
removed.
"""

from __future__ import annotations

import csv
import json
import os
import random
import re
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import inputs
import system
from cases import Case, Failed, Skipped, expect
from commands import Ended, Interference, Place, run, start
from subjects import SUBJECTS

Attack = Callable[[Place, random.Random], int | None]
TITLE = "\x1b]0;PWN\x07"
BREAKOUT = 'x\nmodel_operations { op_library_filename: "/x/evil.so" }\n#'
SECRET = "SECRET KEY 4711"


def make_cases(count: int) -> Iterator[Case]:
    """Every attack; those with random places more often."""
    for name, attack in ATTACKS.items():
        many = max(1, count // 10) if name in RANDOM else 1
        for index in range(many):
            yield Case(part="hostile", name=name, index=index, run=_attacking(attack), seconds=200)


def prepare(names: set[str]) -> None:
    """Makes what is damaged."""
    needed = {
        "replaced": "old", "escape sequences": "vlm", "devices": "vlm", "--out a device": "vlm", "built": "vlm",
        "foreign cache": "calibrate", "hostile texts": "sweep", "--out a": "sweep",
    }  # fmt: skip
    inputs.photos()
    inputs.questions()
    for thing in {"new", *(thing for words, thing in needed.items() if any(words in name for name in names))}:
        if thing in SUBJECTS:
            SUBJECTS[thing].prepare()
        else:
            inputs.artifact(thing)


def _attacking(attack: Attack) -> Callable[[Path, random.Random], int | None]:
    def case(folder: Path, draw: random.Random) -> int | None:
        return attack(Place(folder / "run").make(), draw)

    return case


# --- what every command owes -------------------------------------------------------------------------


def _refused(ended: Ended) -> None:
    _plain_output(ended)
    ended.check_success_or_one_line()
    expect(ended.code == 1, f"it was not refused: {ended.in_words()}")


def _plain_output(ended: Ended) -> None:
    """No character that controls a terminal."""
    for name, text in (("stdout", ended.out), ("stderr", ended.err)):
        found = re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)
        if found:
            around = text[max(0, found.start() - 40) : found.end() + 40]
            raise Failed(f"{found.group()!r} reaches {name}: {around!r}")


def _encode(artifact: Path, *more: object) -> list[object]:
    return ["encode", inputs.photos()[0], "--artifact", artifact, "--out", "f.safetensors", *more]


# --- artifacts -----------------------------------------------------------------------------------------


def _copy(place: Place, name: str = "art", of: str = "new") -> Path:
    return Path(shutil.copytree(inputs.artifact(of), place.work / name))


def _change_graph(artifact: Path, change: Callable[[Any], None]) -> None:
    """Changes the graph, and the manifest's size and hash of it."""
    import onnx

    from fvexport.core.hashing import file_sha256

    file = artifact / "encoder.onnx"
    model = onnx.load(file, load_external_data=False)
    change(model)
    file.write_bytes(model.SerializeToString())
    manifest = json.loads((artifact / "manifest.json").read_text())
    manifest["files"][file.name] |= {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
    (artifact / "manifest.json").write_text(json.dumps(manifest))


def _external(change: Callable[[Any], None]) -> Attack:
    """Changes each tensor's place in the file of weights."""

    def attack(place: Place, draw: random.Random) -> None:
        artifact = _copy(place)

        def edit(model: Any) -> None:
            tensors = [tensor for tensor in model.graph.initializer if tensor.external_data]
            expect(tensors, "the campaign's artifact has no external data")
            for tensor in tensors:
                change(tensor.external_data)

        _change_graph(artifact, edit)
        backend = draw.choice(["openvino", "onnxruntime-cpu", "eager"])
        _refused(run(["inspect", artifact], place))
        _refused(run(_encode(artifact, "--backend", backend), place))

    return attack


def _add(key: str, value: str) -> Callable[[Any], None]:
    return lambda entries: entries.add(key=key, value=value)


def _set(key: str, value: str) -> Callable[[Any], None]:
    def change(entries: Any) -> None:
        for entry in entries:
            if entry.key == key:
                entry.value = value

    return change


def _training_info(place: Place, draw: random.Random) -> None:
    artifact = _copy(place)
    _change_graph(artifact, lambda model: model.training_info.add().algorithm.node.add(op_type="Relu"))
    _refused(run(["inspect", artifact], place))


def _linked_files(place: Place, draw: random.Random) -> None:
    """A link among an artifact's files is not copied out to a model repository or another folder."""
    secret = place.root / "id_rsa"
    secret.write_text(SECRET)
    artifact = _copy(place)
    name = draw.choice(["encoder.onnx.zz", "notes.txt", "encoder.onnx.data2"])
    (artifact / name).symlink_to(secret)
    manifest = json.loads((artifact / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": len(SECRET), "sha256": "0" * 64}
    (artifact / "manifest.json").write_text(json.dumps(manifest))
    run(["trt", "--artifact", artifact, "--dry-run", "--out", "engine"], place).check_clean()
    _repository(artifact, place.work / "repository")
    copies = [
        path
        for path in place.work.rglob("*")
        if path.parent != artifact and path.is_file() and SECRET.encode() in path.read_bytes()
    ]
    expect(not copies, f"a link's target was copied to {[str(p.relative_to(place.work)) for p in copies]}")
    expect(secret.read_text() == SECRET, "a link's target was changed")


def _repository(artifact: Path, folder: Path) -> Path | None:
    """A model of Triton Inference Server; None if the artifact was refused."""
    from fvexport.core.errors import FvexportError
    from fvexport.export.artifact import Artifact
    from fvexport.export.triton_server import write_repository

    try:
        return write_repository(Artifact.open(artifact), folder, name="model")
    except FvexportError:
        return None


def _server_config(place: Place, draw: random.Random) -> None:
    """A line break in any text of the manifest adds nothing to config.pbtxt."""
    artifact = _copy(place)
    sound = json.loads((artifact / "manifest.json").read_text())
    written = 0
    for path in _texts(sound):
        changed = _with(sound, path, BREAKOUT)
        (artifact / "manifest.json").write_text(json.dumps(changed))
        shutil.rmtree(place.work / "repository", ignore_errors=True)
        model = _repository(artifact, place.work / "repository")
        if model is None:
            continue
        written += 1
        text = (model / "config.pbtxt").read_text()
        lines = [line for line in text.splitlines() if re.match(r"\s*model_operations", line)]
        expect(not lines, f"a line break in {'.'.join(map(str, path))} of the manifest reaches config.pbtxt: {lines}")
    (artifact / "manifest.json").write_text(json.dumps(sound))
    expect(_repository(artifact, place.work / "sound"), "the sound artifact is refused")


def _texts(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all texts."""
    if isinstance(document, str):
        yield path
    elif isinstance(document, dict | list):
        for key, value in document.items() if isinstance(document, dict) else enumerate(document):
            yield from _texts(value, (*path, key))


def _with(document: Any, path: tuple[Any, ...], text: str) -> Any:
    """A copy with another text at a place."""
    changed = json.loads(json.dumps(document))
    holder = changed
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = text
    return changed


def _manifest_to_terminal(place: Place, draw: random.Random) -> None:
    artifact = _copy(place)
    sound = json.loads((artifact / "manifest.json").read_text())
    path = draw.choice(list(_texts(sound)))
    text = draw.choice([TITLE, "\x1b[2J", "\x9b31m", "\r", "\u202e", "a\nb"]) + "x"
    (artifact / "manifest.json").write_text(json.dumps(_with(sound, path, text)))
    for argv in (["inspect", artifact], ["inspect", artifact, "--json"], _encode(artifact)):
        ended = run(argv, place)
        ended.check_success_or_one_line()
        _plain_output(ended)


def _names_to_terminal(place: Place, draw: random.Random) -> None:
    """Names of files and folders, and questions, with escape sequences."""
    artifact = _copy(place, f"art{TITLE}")
    photo = place.work / f"photo{TITLE}.png"
    shutil.copy(inputs.photos()[0], photo)
    shutil.copytree(inputs.GOLDEN / "timm_tiny", place.work / f"weights{TITLE}")
    broken = place.work / f"broken{TITLE}.png"
    broken.write_bytes(b"no image")
    vlm, question = inputs.vlm(), f"What{TITLE}?"
    model = ("--checkpoint", vlm, *inputs.RES, "--max-new-tokens", 2)
    questions = place.work / f"items{TITLE}.jsonl"
    questions.write_text(json.dumps({"image": str(photo), "question": question, "answers": [TITLE]}) + "\n")
    commands: list[list[object]] = [
        ["inspect", artifact],
        ["encode", photo, broken, "--artifact", artifact, "--out", f"f{TITLE}.safetensors"],
        ["parity", artifact, "--images", photo],
        ["onnx", "--checkpoint", place.work / f"weights{TITLE}", *inputs.RES, "--no-simplify", "--out", f"o{TITLE}"],
        ["calibrate", "--variant", "tiny", *inputs.RES, "--calib", photo, "--samples", 1, "--out", f"r{TITLE}.json"],
        ["ask", photo, question, "--then", question, *model],
        ["ask", "--batch", questions, "--out", f"a{TITLE}.jsonl", *model],
        ["eval", "--task", "vqa", "--data", questions, "--out", f"e{TITLE}.jsonl", *model],
        ["trt", "--artifact", artifact, "--dry-run", "--out", f"t{TITLE}"],
        ["doctor"],
        ["report", f"missing{TITLE}"],
    ]
    for number, argv in enumerate(commands):
        ended = run(argv, place, tag=f"run-{number}")
        try:
            ended.check_clean()
            _plain_output(ended)
        except Failed as what:
            raise Failed(f"{argv[0]}: {what}") from None


def _devices_instead_of_files(place: Place, draw: random.Random) -> None:
    """A FIFO, a device or a socket as any file that a command reads: one line, at once."""
    kind = draw.choice(["fifo", "zero", "socket"])

    def put(path: Path) -> Path:
        path.unlink(missing_ok=True)
        _special(path, kind)
        return path

    checkpoint = Path(shutil.copytree(inputs.GOLDEN / "llava_tiny", place.work / "checkpoint"))
    artifact, sweep = _copy(place), place.work / "sweep"
    sweep.mkdir()
    model = ("--checkpoint", inputs.vlm(), *inputs.RES)
    export = ["onnx", "--checkpoint", checkpoint, *inputs.RES, "--out", "out"]
    attacks: list[tuple[str, Callable[[], object], list[object]]] = [
        ("config.json", lambda: put(checkpoint / "config.json"), export),
        ("model.safetensors", lambda: put(checkpoint / "model.safetensors"), export),
        ("a checkpoint's file", lambda: put(place.work / "w.safetensors"), ["onnx", "--checkpoint", "w.safetensors"]),
        ("manifest.json", lambda: put(artifact / "manifest.json"), ["inspect", artifact]),
        ("encoder.onnx", lambda: put(artifact / "encoder.onnx"), ["inspect", artifact]),
        ("encoder.onnx.data", lambda: put(artifact / "encoder.onnx.data"), _encode(artifact)),
        ("an image", lambda: put(place.work / "i.png"), ["ask", "i.png", "What?", *model]),
        ("a list of images", lambda: put(place.work / "i.txt"), ["calibrate", "--variant", "tiny", "--calib", "i.txt"]),
        ("--ranges", lambda: put(place.work / "r.json"), ["onnx", "--variant", "tiny", "--int8", "--ranges", "r.json"]),
        ("--batch", lambda: put(place.work / "q.jsonl"), ["ask", "--batch", "q.jsonl", "--out", "a.jsonl", *model]),
        ("results.jsonl", lambda: put(sweep / "results.jsonl"), ["report", sweep]),
    ]  # fmt: skip
    name, attack, argv = draw.choice(attacks)
    attack()
    if argv[0] in ("onnx", "calibrate") and "--out" not in argv:
        argv += ["--out", "out.json", *inputs.RES]
    try:
        _refused(run(argv, place, seconds=30))
    except Failed as what:
        raise Failed(f"{kind} as {name}: {what}") from None


def _special(path: Path, kind: str) -> None:
    """Makes a FIFO, a device like /dev/null or /dev/zero, or a socket."""
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as one:
            before = Path.cwd()
            os.chdir(path.parent)  # names of sockets are short
            one.bind(path.name)
            os.chdir(before)
    else:
        try:
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, {"null": 3, "zero": 5}[kind]))
        except OSError as error:
            raise Skipped(f"cannot make a device ({error.strerror}); run as root") from None


# --- results ---------------------------------------------------------------------------------------------


def _special_out(place: Place, draw: random.Random) -> None:
    """--out names a device, a FIFO, a socket or a link to one: it stays what it is."""
    model = ("--checkpoint", inputs.vlm(), *inputs.RES, "--max-new-tokens", 2)
    seeded = ("--variant", "tiny", *inputs.RES)
    commands: dict[str, tuple[list[object], str]] = {
        "onnx": (["onnx", *seeded, "--no-simplify", "--no-parity"], "x"),
        "trt": (["trt", "--artifact", inputs.artifact("new"), "--dry-run"], "x"),
        "encode": (["encode", inputs.photos()[0], "--artifact", inputs.artifact("new")], "x.safetensors"),
        "calibrate": (["calibrate", *seeded, "--samples", 1], "x.json"),
        "ask": (["ask", "--batch", inputs.questions(), *model], "x.jsonl"),
        "eval": (["eval", "--task", "vqa", "--data", inputs.questions(), *model], "x.jsonl"),
        "sweep": (["sweep", *seeded, "--backend", "eager", "--precision", "fp32", "--no-peers"], "x"),
        "report": (["report", SUBJECTS["sweep"].reference.place.work / "sweep"], "x"),
    }
    name = draw.choice(sorted(commands))
    argv, target = commands[name]
    kind, linked = draw.choice(["null", "fifo", "socket"]), draw.random() < 0.25
    special = place.work / ("special" if linked else target)
    _special(special, kind)
    if linked:
        (place.work / target).symlink_to(special)
    before = special.lstat()
    forced = ["--force"] if draw.random() < 0.7 and name in ("onnx", "trt", "encode", "calibrate") else []
    ended = run([*argv, "--out", target, *forced], place, seconds=60)
    words = f"{name} --out {kind}{' through a link' if linked else ''} {''.join(forced)}"
    try:
        after = special.lstat()
        same = (before.st_mode, before.st_rdev, before.st_ino) == (after.st_mode, after.st_rdev, after.st_ino)
        expect(same, f"it was replaced ({ended.in_words()})")
        _refused(ended)
        rest = place.listing() - {target, "special"}
        expect(not rest, f"left behind: {sorted(rest)}")
    except (Failed, OSError) as what:
        raise Failed(f"{words}: {what}") from None


def _foreign_out(place: Place, draw: random.Random) -> None:
    """--force never replaces a folder that fvexport did not write."""
    for argv in (
        ["onnx", "--variant", "tiny", *inputs.RES, "--out", "mine", "--force"],
        ["trt", "--artifact", inputs.artifact("new"), "--dry-run", "--out", "mine", "--force"],
        ["encode", inputs.photos()[0], "--artifact", inputs.artifact("new"), "--out", "mine", "--force"],
        ["sweep", "--variant", "tiny", *inputs.RES, "--out", "mine"],
    ):
        (place.work / "mine").mkdir(exist_ok=True)
        (place.work / "mine" / "letter.txt").write_text(SECRET)
        _refused(run(argv, place))
        expect((place.work / "mine" / "letter.txt").read_text() == SECRET, f"{argv[0]} changed a foreign folder")
        expect(place.listing() == {"mine"}, f"{argv[0]} left {sorted(place.listing())}")


def _foreign_scratch(place: Place, draw: random.Random) -> None:
    """Reading and writing leave folders alone that only look like a run's own."""
    artifact = _copy(place)
    for name in (".art.replaced", ".gone.replaced"):
        (place.work / name).mkdir()
        (place.work / name / "letter.txt").write_text(SECRET)
    run(["inspect", artifact], place).check_success()
    run(_encode(artifact), place).check_success()
    _refused(run(["inspect", "gone"], place))
    expect({".art.replaced", ".gone.replaced"} <= place.listing(), f"reading left only {sorted(place.listing())}")
    run(["onnx", "--variant", "tiny", *inputs.RES, "--no-simplify", "--out", artifact, "--force"], place)
    for name in (".art.replaced", ".gone.replaced"):
        letter = place.work / name / "letter.txt"
        expect(letter.exists() and letter.read_text() == SECRET, f"{name} of another program was removed or changed")


def _foreign_cache(place: Place, draw: random.Random) -> None:
    """The state of a calibration that others own or can write to is not used."""
    subject = SUBJECTS["calibrate"]
    state = _interrupted_calibration(place)
    poisoned = _poison(state)
    ways: dict[str, Callable[[], None]] = {
        "control": lambda: None,
        "another user's file": lambda: os.chown(state, system.NOBODY, system.NOBODY),
        "a file that all can write": lambda: state.chmod(0o666),
        "another user's folder": lambda: os.chown(state.parent, system.NOBODY, system.NOBODY),
        "a folder that all can write": lambda: state.parent.chmod(0o777),
    }
    for way, change in ways.items():
        if "another" in way and os.geteuid() != 0:
            continue
        state.write_bytes(poisoned)
        os.chown(state, os.geteuid(), os.getegid())
        state.chmod(0o600)
        change()
        ended = run(subject.again(place), place)
        ended.check_success()
        try:
            subject.check_done(place)
            used = False
        except Failed:
            used = True
        if way == "control":
            expect(used, "the campaign's poisoned state has no effect even if it is one's own")
        else:
            expect(not used, f"the state in {way} was used: the ranges are wrong")
        os.chown(state.parent, os.geteuid(), os.getegid())
        state.parent.chmod(0o700)


def _interrupted_calibration(place: Place) -> Path:
    """The file in which a killed calibration keeps what it has seen."""
    subject = SUBJECTS["calibrate"]
    for _ in range(20):
        running = start(subject.argv(), place, tag="killed")
        folder = place.folder("cache") / "fvexport" / "calibration"
        while not running.poll() and not list(folder.glob("*.safetensors")):
            time.sleep(0.0005)
        running.send(9)
        running.wait()
        if found := list(folder.glob("*.safetensors")):
            if not (place.work / subject.target).exists():
                return found[0]
            shutil.rmtree(place.work)
            shutil.rmtree(folder)
            place.make()
    raise Failed("the campaign could not interrupt a calibration after its first state")


def _poison(state: Path) -> bytes:
    """The state with values a hundred times smaller, at the same size."""
    from safetensors import safe_open
    from safetensors.numpy import load_file, save

    with safe_open(state, "np") as opened:
        metadata = opened.metadata()
    tensors = load_file(state)
    return save({name: (t * 0.01 if t.dtype.kind == "f" else t) for name, t in tensors.items()}, metadata)


# --- reports ---------------------------------------------------------------------------------------------

TEXTS = (
    '=HYPERLINK("http://evil","x")', "@SUM(1+9)", "+1+1", "-1+1", "\t=1", "\r=1", "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>", "[x](javascript:alert(1))", "![x](http://evil/x.png)", "a|b", TITLE + "x", "x\ny",
    "`x` **y** <b>z</b>", "$\\frac$", "\ud800", "\ufffe",
)  # fmt: skip


def _report(place: Place, draw: random.Random) -> None:
    """A text of a result reaches the terminal, the table, the page and the spreadsheet as text only."""
    source = (SUBJECTS["sweep"].reference.place.work / "sweep" / "results.jsonl").read_text()
    rows = [json.loads(line) for line in source.splitlines()]
    text = draw.choice(TEXTS)
    field = draw.choice(
        [
            "checkpoint",
            "reason",
            "computes",
            "command",
            "gpu",
            "cpu",
            "platform",
            "version",
            "backend",
            "variant",
            "form",
        ]
    )
    for row in rows:
        if row["type"] == "environment":
            row |= {"gpus": [text]} if field == "gpu" else {field: text} if field in ("command", "platform") else {}
            row["cpu"] |= {"model": text} if field == "cpu" else {}
            row["versions"] |= {text: text} if field == "version" else {}
        elif row["type"] == "result":
            row["cell"] |= {field: text} if field in row["cell"] else {}
            row |= {field: text} if field in ("reason", "computes") else {}
    _renumber(rows)
    sweep = place.work / "sweep"
    sweep.mkdir()
    (sweep / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ended = run(["report", sweep, "--out", "out"], place)
    try:
        ended.check_success_or_one_line()
        _plain_output(ended)
        if ended.code == 0:
            _check_report(place.work / "out")
    except Failed as what:
        raise Failed(f"{text!r} as {field}: {what}") from None


def _renumber(rows: list[dict[str, Any]]) -> None:
    """Results name their environment by an id that depends on its content; one that is refused has none."""
    from fvexport.benchmarks.sweep.result import Environment, from_line
    from fvexport.core.errors import FvexportError

    for row in rows:
        if row["type"] == "environment":
            try:
                record = from_line(json.dumps(row), "the campaign's line")
            except FvexportError:
                return
            assert isinstance(record, Environment)
            identity = record.id
    for row in rows:
        if row["type"] != "environment":
            row["environment"] = identity


def _check_report(folder: Path) -> None:
    with (folder / "report.csv").open(newline="", encoding="utf-8") as stream:
        for cell in (cell for row in csv.reader(stream) for cell in row):
            number = re.fullmatch(r"[+-]?[\d.]+(e[+-]?\d+)?", cell)
            expect(
                number or not cell.startswith(("=", "+", "-", "@", "\t", "\r")), f"a formula in report.csv: {cell!r}"
            )
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    outside_code = re.sub(r"(`+).*?\1", "", markdown)
    for pattern in (r"(?<!\\)<(script|img|b)\b", r"(?<!\\)\]\(javascript:", r"!\[x\]\(http://evil"):
        expect(not re.search(pattern, outside_code), f"{pattern} in report.md")
    page = (folder / "report.html").read_text(encoding="utf-8")
    own = (SUBJECTS["sweep"].reference.place.work / "sweep" / "report.html").read_text(encoding="utf-8")
    for word in ("<script", "<img src=x", "<b>z", 'href="javascript:'):
        expect(page.count(word) == own.count(word), f"{word} in report.html")
    for name, text in (("report.md", markdown), ("report.html", page)):
        expect(not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", text), f"a control character in {name}")


# --- checkpoints -----------------------------------------------------------------------------------------

BIG = "9" * 5000
SETTINGS: tuple[tuple[str, Any], ...] = (
    ("mm_projector_type", "mlp1000000x_gelu"), ("mm_projector_type", f"mlp{BIG}x_gelu"),
    ("mm_vision_tower", f"x_{BIG}"), ("mm_hidden_size", 2**60), ("num_hidden_layers", 10_000_000),
    ("num_attention_heads", 0), ("num_attention_heads", -1), ("num_key_value_heads", 0), ("vocab_size", 2**62),
    ("pad_token_id", -(2**63)), ("hidden_size", "x"), ("rope_theta", None), ("rope_scaling", {"rope_type": ""}),
    ("image_grid_pinpoints", "-" * 100_000 + "1"), ("image_grid_pinpoints", [[1e999, 256]]),
    ("max_position_embeddings", 10**400), ("rms_norm_eps", "nan"), ("tie_word_embeddings", []),
)  # fmt: skip


def _settings(place: Place, draw: random.Random) -> None:
    """A config.json with a value that must not be built."""
    folder = Path(shutil.copytree(inputs.vlm(), place.work / "vlm"))
    config = json.loads((folder / "config.json").read_text())
    key, value = draw.choice(SETTINGS)
    (folder / "config.json").write_text(json.dumps(config | {key: value}))
    model = ("--checkpoint", folder, *inputs.RES)
    for argv in (["onnx", *model, "--no-simplify", "--out", "x"], ["ask", inputs.photos()[0], "What?", *model]):
        try:
            ended = run(argv, place, Interference(before=_two_gigabytes), seconds=40)
            ended.check_success_or_one_line()
            _plain_output(ended)
        except Failed as what:
            raise Failed(f"{argv[0]} with {key}={str(value)[:40]}: {what}") from None


def _two_gigabytes() -> None:
    import resource

    system.limit(resource.RLIMIT_AS, system.address_space() + (2 << 30))


def _names_of_tensors(place: Place, draw: random.Random) -> None:
    """Names of tensors and shards with numbers of thousands of digits, control characters, or too long for a disk."""
    from safetensors.numpy import load_file, save_file

    folder = place.work / "checkpoint"
    folder.mkdir()
    tensors = load_file(inputs.GOLDEN / "timm_tiny" / "model.safetensors")
    stem = draw.choice(
        [f"stages.{BIG}.x", f"stages.0.blocks.{BIG}.x", "x" * 100_000, TITLE, "a\nb", "../" * 100, "\u202e"]
    )
    if draw.random() < 0.5:
        save_file({**tensors, stem: next(iter(tensors.values()))}, folder / "model.safetensors")
    else:
        index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, f"{stem[:300]}.safetensors")}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    ended = run(["onnx", "--checkpoint", folder, *inputs.RES, "--no-simplify", "--out", "x"], place, seconds=40)
    ended.check_success_or_one_line()
    _plain_output(ended)


# --- readers and writers at once ---------------------------------------------------------------------------


def _replaced_while_read(place: Place, draw: random.Random) -> int:
    """A reader beside a writer that replaces the artifact all the time sees one of both, whole."""
    import numpy as np

    from fvexport import Encoder
    from fvexport.core.errors import FvexportError

    target = place.work / "art"
    pixels = np.full((1, 3, 64, 64), 0.4, np.float32)
    wanted = {}
    for name in ("new", "old"):
        began = time.monotonic()
        encoder = Encoder(inputs.artifact(name), "onnxruntime-cpu")
        pause = time.monotonic() - began
        wanted[encoder.artifact.manifest.checkpoint.sha256] = encoder.run(pixels)
    shutil.copytree(inputs.artifact("old"), target)
    writer = os.fork()
    if writer == 0:
        try:
            _replace_forever(target, draw, pause)
        finally:
            os._exit(1)
    opened, refused, mixed, ends = 0, list[str](), 0, time.monotonic() + 10
    try:
        while time.monotonic() < ends:
            try:
                encoder = Encoder(target, "onnxruntime-cpu")
                found = encoder.run(pixels)
            except FvexportError as error:
                refused.append(str(error))
                continue
            opened += 1
            mixed += not np.allclose(found, wanted[encoder.artifact.manifest.checkpoint.sha256], atol=1e-4)
    finally:
        os.kill(writer, 9)
        os.waitpid(writer, 0)
    expect(not mixed, f"{mixed} of {opened} opens had the manifest of one artifact and the weights of another")
    expect(len(refused) < opened, f"{len(refused)} opens were refused and {opened} succeeded: {refused[-1:]}")
    return opened + len(refused)


def _replace_forever(target: Path, draw: random.Random, pause: float) -> None:
    """Replaces the artifact by the other one, at times within the `pause` seconds that one opening takes."""
    from fvexport.export.artifact import writing

    ends, number = time.monotonic() + 60, 0
    while time.monotonic() < ends:
        number += 1
        source = inputs.artifact(("new", "old")[number % 2])
        with writing(target, force=True) as folder:
            for file in source.iterdir():
                shutil.copy(file, folder / file.name)
        time.sleep(draw.choice([0, 0.2, 1, 2]) * pause)


ATTACKS: dict[str, Attack] = {
    "onnx, external data with a second location": _external(_add("location", "*/_ORT_MEM_ADDR_/*")),
    "onnx, external data with a second offset": _external(_add("offset", "0")),
    "onnx, external data in memory": _external(_set("location", "*/_ORT_MEM_ADDR_/*")),
    "onnx, external data outside": _external(_set("location", "../../../../etc/hostname")),
    "onnx, external data, absolute": _external(_set("location", "/etc/hostname")),
    "onnx, external data beyond the end": _external(_set("offset", str(2**40))),
    "onnx, training_info": _training_info,
    "artifact, links among files": _linked_files,
    "artifact, replaced while read": _replaced_while_read,
    "artifact, folders that look like ours": _foreign_scratch,
    "manifest, line breaks to config.pbtxt": _server_config,
    "manifest, escape sequences to the terminal": _manifest_to_terminal,
    "names, escape sequences to the terminal": _names_to_terminal,
    "all readers, devices instead of files": _devices_instead_of_files,
    "all writers, --out a device": _special_out,
    "all writers, --out a foreign folder": _foreign_out,
    "calibrate, foreign cache": _foreign_cache,
    "report, hostile texts": _report,
    "checkpoint, settings that must not be built": _settings,
    "checkpoint, names of tensors and files": _names_of_tensors,
}
RANDOM = {
    "artifact, links among files", "manifest, escape sequences to the terminal", "report, hostile texts",
    "all readers, devices instead of files", "all writers, --out a device",
    "checkpoint, settings that must not be built", "checkpoint, names of tensors and files",
    "onnx, external data with a second location",
}  # fmt: skip
