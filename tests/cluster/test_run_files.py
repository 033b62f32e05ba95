"""The files of a run hold to docs/schema/, and are where the docs say."""

from __future__ import annotations

import ast
import json
import platform
import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from jsonschema import Draft202012Validator

from cluster.harness import Cluster, cluster
from cluster.steps import FREE, Steps
from minga.settings.schema import Settings
from minga.transport.stream import PREAMBLE_BYTES
from support import ROOT

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(600),
]

SCHEMAS = sorted((ROOT / "docs" / "schema").glob("*.json"))
EPOCHS, MEASURED, TRAIN, VAL = 12, 3, 1442, 355
STAMP = r"\d{8}-\d{6}\.json"


def schema(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "docs" / "schema" / f"{name}.v1.json").read_text())


def faults(name: str, content: Any) -> list[str]:
    """Return what is wrong with a file's content, each with its place."""
    errors = Draft202012Validator(schema(name)).iter_errors(content)
    return [f"{each.json_path}: {each.message}" for each in errors]


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def start(lan: Cluster, one: Steps = FREE, other: Steps = FREE) -> None:
    """Start a ps and two workers, whose first step begins when both have joined."""
    together = lan.folder / "together"
    lan.start_ps()
    for rank, steps in enumerate((one, other), 1):
        lan.start_worker(rank, entry=steps.gated(0, together).entry)
    lan.joined(1, 2)
    together.touch()


@pytest.fixture(scope="module")
def lan(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Iterator[Cluster]:
    """A finished run of two workers."""
    settings = {
        "train__epochs": EPOCHS,
        "evaluation__every_epochs": EPOCHS / MEASURED,
        "checkpoint__every_s": 1,
    }
    with cluster(tmp_path_factory.mktemp("run"), digits, **settings) as made:
        start(made)
        for name in ("ps", "worker1", "worker2"):
            assert made.finish(name) == 0, made.log(name)
        yield made


# -- a run's files


@pytest.mark.parametrize("name", ["config", "status", "summary"])
def test_a_file_of_the_run_holds_to_its_schema(lan: Cluster, name: str) -> None:
    assert faults(name, read(lan.run / f"{name}.json")) == []


@pytest.mark.parametrize(("name", "file"), [("event", "events"), ("journal", "journal")])
def test_every_line_holds_to_its_schema(lan: Cluster, name: str, file: str) -> None:
    written = lines(lan.run / f"{file}.jsonl")
    assert len(written) > 20
    assert {fault for line in written for fault in faults(name, line)} == set()


def test_every_process_leaves_its_statistics_under_the_guides_name(lan: Cluster) -> None:
    host = re.escape(platform.node())
    (ps,) = (lan.run / "stats").iterdir()
    workers = sorted((lan.folder / "elsewhere" / "runs" / lan.run.name / "stats").iterdir())

    assert re.fullmatch(f"{host}_ps_{STAMP}", ps.name)
    assert faults("ps", read(ps)) == []
    assert [each.name.split("_")[-2] for each in workers] == ["worker1", "worker2"]
    for rank, path in enumerate(workers, 1):
        assert re.fullmatch(f"{host}_worker{rank}_{STAMP}", path.name)
        assert faults("worker", read(path)) == []
        assert read(path)["rank"] == rank


def test_the_summary_has_what_the_design_promises(lan: Cluster) -> None:
    summary = lan.summary()

    assert summary["run_id"] == lan.run.name
    assert summary["samples"] == EPOCHS * TRAIN
    assert summary["epochs"] == EPOCHS
    assert summary["samples_per_s"] == pytest.approx(summary["samples"] / summary["wall_s"])
    assert 0.5 < summary["val_accuracy"] <= summary["best_val_accuracy"]
    assert (summary["rejected"], summary["resumed_from"]) == (0, None)
    assert [each["rank"] for each in summary["workers"]] == [1, 2]
    assert sum(each["samples"] for each in summary["workers"]) == EPOCHS * TRAIN
    assert sum(each["pushes"] for each in summary["workers"]) == summary["version"]
    for each in summary["workers"]:
        assert each["joins"] == 1
        assert each["pushes"] > 0
        assert 0 <= each["staleness_mean"] <= each["staleness_max"]
        assert min(each["bytes_in"], each["bytes_out"], each["compute_s"], each["wait_s"]) > 0


def test_the_ps_and_a_worker_tell_the_same_story(lan: Cluster) -> None:
    stats = (lan.folder / "elsewhere" / "runs" / lan.run.name / "stats").iterdir()
    own = {each["rank"]: each for each in map(read, stats)}
    for said in lan.summary()["workers"]:
        mine = own[said["rank"]]
        for key in ("samples", "pushes", "refused", "joins"):
            assert said[key] == mine[key]
        assert said["compute_s"] == pytest.approx(mine["compute_s"])
        assert said["bytes_in"] == mine["bytes_out"]  # what the one sends the other receives
        assert said["bytes_out"] <= mine["bytes_in"]  # the worker counts the first weights too
    assert sum(each["evaluated"] for each in own.values()) == MEASURED * VAL


def test_events_tell_the_run_from_start_to_end(lan: Cluster) -> None:
    events = lines(lan.run / "events.jsonl")
    kinds = [each["kind"] for each in events]

    assert (kinds[0], kinds[-1]) == ("run_start", "run_end")
    assert kinds.count("worker_join") == kinds.count("worker_left") == 2
    assert kinds.count("evaluation") == kinds.count("evaluation_start") == MEASURED
    assert {each["run_id"] for each in events} == {lan.run.name}
    assert [each["time"] for each in events] == sorted(each["time"] for each in events)
    pushes = [each for each in events if each["kind"] == "push"]
    assert sum(each["samples"] for each in pushes) == EPOCHS * TRAIN
    assert len(pushes) == len(lan.journal()) == lan.summary()["version"]


def test_curves_are_a_picture(lan: Cluster) -> None:
    content = (lan.run / "curves.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", content[16:24]) == (1200, 480)


def test_tensorboard_has_one_folder_per_source(lan: Cluster) -> None:
    found = {path.parent.name for path in (lan.run / "tb").glob("*/events.out.tfevents.*")}
    assert found == {"ps", "worker-01", "worker-02"}


def test_the_guides_folders_beside_runs_point_into_the_run(lan: Cluster) -> None:
    for name in ("stats", "checkpoints"):
        link = lan.folder / name
        assert link.is_symlink()
        assert not link.readlink().is_absolute()  # so the whole project may be moved
        assert link.resolve() == (lan.run / name).resolve()
    assert {path.name for path in (lan.folder / "checkpoints").iterdir()} == {
        "best.pth",
        "last.pth",
        "previous.pth",
    }


def test_nothing_else_is_left_in_the_run(lan: Cluster) -> None:
    documented = (ROOT / "docs" / "stats.md").read_text()
    for path in lan.run.iterdir():
        assert f"`{path.name}" in documented, f"{path.name} is not in docs/stats.md"
    assert not list(lan.folder.rglob("*.part"))


def test_the_files_of_an_eventful_run_hold_to_their_schemas(tmp_path: Path, digits: Path) -> None:
    """Pushes refused, a stranger, a worker lost, a ps killed and resumed."""
    settings = {
        "train__epochs": 12,
        "evaluation__every_epochs": 4,
        "checkpoint__every_s": 1,
        "exchange__max_staleness": 0,
    }
    with cluster(tmp_path, digits, **settings) as lan:
        other, saved, killed, never = (
            lan.folder / name for name in ("other", "saved", "killed", "never")
        )
        # the first one's first window is too old once the other one has pushed
        start(lan, Steps(gates={1: other, 51: never}), Steps(gates={101: saved, 121: killed}))
        lan.wait_for("push", rank=2)
        other.touch()
        lan.wait_for("refused", rank=1)
        with socket.create_connection(("127.0.0.1", lan.port)) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n".ljust(PREAMBLE_BYTES))
            lan.wait_for("turned_away")
        lan.kill("worker1")
        lan.wait_for("worker_lost", rank=1)
        kept = lan.wait_for("checkpoint", samples_done=lambda done: done > 0)
        saved.touch()
        lan.wait_for("push", version=lambda now: now > kept["version"])
        lan.kill("ps")
        killed.touch()
        lan.start_ps()
        for name in ("ps", "worker2"):
            assert lan.finish(name) == 0, lan.log(name)

        for name, file in (("event", "events"), ("journal", "journal")):
            written = lines(lan.run / f"{file}.jsonl")
            assert {fault for line in written for fault in faults(name, line)} == set()
        for name in ("config", "status", "summary"):
            assert faults(name, read(lan.run / f"{name}.json")) == []
        (ps,) = (lan.run / "stats").glob("*_ps_*.json")  # the killed one left none
        assert faults("ps", read(ps)) == []
        assert lan.summary()["resumed_from"] >= kept["version"]
        assert "resume" in {each["kind"] for each in lines(lan.run / "events.jsonl")}


# -- the schemas themselves


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.stem)
def test_a_schema_is_one_and_is_named_as_the_files_name_it(path: Path) -> None:
    content = read(path)
    Draft202012Validator.check_schema(content)
    name, version = re.fullmatch(r"(\w+)\.v(\d+)\.json", path.name).groups()
    assert content["$id"] == f"minga.{name}/{version}"
    if name != "journal":  # its lines name none: they are many
        assert content["properties"]["schema"] == {"const": content["$id"]}


def objects(part: Any) -> Iterator[dict[str, Any]]:
    """Yield every part of a schema that describes an object with named fields."""
    if isinstance(part, dict):
        if part.get("type") == "object" and "properties" in part:
            yield part
        for each in part.values():
            yield from objects(each)
    elif isinstance(part, list):
        for each in part:
            yield from objects(each)


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.stem)
def test_schemas_are_strict(path: Path) -> None:
    for each in objects(read(path)):
        closed = each.get("additionalProperties", each.get("unevaluatedProperties"))
        assert closed is False
        assert set(each["required"]) == set(each["properties"])


def test_the_worker_of_the_three_views_of_the_ps_is_one() -> None:
    views = [schema(name)["$defs"]["worker"] for name in ("status", "ps", "summary")]
    assert views[0] == views[1] == views[2]


def test_the_settings_schema_has_every_setting_with_its_choices() -> None:
    described = schema("config")["properties"]["settings"]["properties"]
    assert list(described) == list(Settings().to_dict())
    for section, kind in get_type_hints(Settings).items():
        fields = get_type_hints(kind)
        assert list(described[section]["properties"]) == list(fields)
        for name, hint in fields.items():
            choices = [each for each in get_args(hint) if isinstance(each, str)]
            assert described[section]["properties"][name].get("enum", []) == choices
    plain = Settings().to_dict()
    sources = {f"{section}.{name}": "default" for section in plain for name in plain[section]}
    content = {"schema": "minga.config/1", "settings": plain, "sources": sources}
    assert faults("config", content) == []


def keys(part: Any) -> set[str]:
    """Return every key that a schema describes."""
    return {key for each in objects(part) for key in each["properties"]} | {
        key for each in part.get("oneOf", ()) for key in each["properties"]
    }


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.stem)
def test_every_key_and_kind_is_in_the_docs(path: Path) -> None:
    described = read(path)
    if path.name.startswith("config"):
        del described["properties"]["settings"]["properties"]  # docs/configuration.md
    words = set(re.findall(r"`(\w+)`", (ROOT / "docs" / "stats.md").read_text()))
    assert keys(described) <= words
    if path.name.startswith("event"):
        assert set(event_kinds()) <= words


# -- controls


def test_a_summary_without_a_key_or_with_another_type_is_refused(lan: Cluster) -> None:
    whole = lan.summary()
    worker = whole["workers"][0]
    for key in whole:
        assert faults("summary", {k: v for k, v in whole.items() if k != key}), key
        assert faults("summary", {**whole, key: {}}), key
    for key in worker:
        less = {k: v for k, v in worker.items() if k != key}
        assert faults("summary", {**whole, "workers": [less]}), key
        assert faults("summary", {**whole, "workers": [{**worker, key: []}]}), key
    assert faults("summary", {**whole, "more": 1})
    assert faults("summary", {**whole, "val_accuracy": 97.5})  # a share, not per cent
    assert faults("summary", {**whole, "val_accuracy": None})


def test_an_event_without_a_field_with_another_or_of_another_kind_is_refused(
    lan: Cluster,
) -> None:
    push = next(each for each in lines(lan.run / "events.jsonl") if each["kind"] == "push")
    assert faults("event", {**push, "loss": None}) == []  # a loss that was not finite
    for key in push:
        assert faults("event", {k: v for k, v in push.items() if k != key}), key
    for changed in ({"kind": "pull"}, {"more": 1}, {"rank": 0}, {"time": "now"}, {"worker": 1}):
        assert faults("event", {**push, **changed}), changed


# -- every event that the source can write


def event_kinds() -> dict[str, set[str]]:
    """Return each kind of event in the schema with its own fields."""
    return {
        each["properties"]["kind"]["const"]: set(each["required"])
        for each in schema("event")["oneOf"]
    }


def written_events(source: str) -> list[tuple[str | None, set[str | None]]]:
    """Return kind (None: not a literal) and fields (None: ``**more``) of each write."""
    return [
        (
            node.args[0].value if isinstance(node.args[0], ast.Constant) else None,
            {keyword.arg for keyword in node.keywords},
        )
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "write"
        and (
            ast.unparse(node.func.value).rpartition(".")[2] == "events"
            or (ast.unparse(node.func.value) == "self" and isinstance(node.args[0], ast.Constant))
        )
    ]


def test_every_event_that_the_source_writes_is_in_the_schema_with_its_fields() -> None:
    sources = sorted((ROOT / "src").rglob("*.py"))
    written = [each for path in sources for each in written_events(path.read_text())]
    kinds = event_kinds()

    # one kind is not a literal: that of a validation's lease
    computed = [fields for kind, fields in written if kind is None]
    assert computed == [kinds["calibrate"]] == [kinds["validate"]]
    named = {kind for kind, _ in written if kind is not None}
    assert named | {"calibrate", "validate"} == set(kinds)
    for kind, fields in written:
        if kind is not None and None in fields:
            assert fields - {None} < kinds[kind], kind
        elif kind is not None:
            assert fields == kinds[kind], kind


def test_an_event_that_is_not_in_the_schema_would_be_seen() -> None:
    source = "state.events.write('nap', rank=1)\nevents.write(kind, **more)\nfile.write('x')"
    assert written_events(source) == [("nap", {"rank"}), (None, {None})]
    assert "nap" not in event_kinds()
