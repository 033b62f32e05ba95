"""Settings: precedence, sources, and every way to write them wrong."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from minga.errors import UsageError
from minga.settings.fields import SettingField, setting_fields
from minga.settings.schema import Settings
from minga.settings.sources import resolve_settings
from support import ROOT

FIELDS = setting_fields()
TRAIN_YAML = ROOT / "train.yaml"
LINKED = {"exchange.mode", "exchange.aggregate"}
"""Settings that decide others, or need one: they have tests of their own."""


def _value(settings: Settings, key: str) -> object:
    section, name = key.split(".")
    return getattr(getattr(settings, section), name)


def _texts(field: SettingField) -> list[str]:
    """Three different allowed texts for a field, none of them its default's."""
    if field.choices:
        return [choice for choice in field.choices if choice != field.default]
    return {int: ["3", "4", "6"], float: ["0.25", "0.5", "0.75"], str: ["a", "b", "c"]}[field.kind]


def _write(folder: Path, text: str) -> Path:
    path = folder / "train.yaml"
    path.write_text(text)
    return path


def _write_setting(folder: Path, key: str, text: str) -> Path:
    section, name = key.split(".")
    return _write(folder, f"{section}:\n  {name}: {text}\n")


@pytest.mark.parametrize("key", [key for key in FIELDS if key not in LINKED])
@pytest.mark.parametrize("sources", list(product([False, True], repeat=3)))
def test_flags_beat_environment_beats_yaml_beats_defaults(
    key: str, sources: tuple[bool, bool, bool], tmp_path: Path
) -> None:
    field = FIELDS[key]
    in_yaml, in_environment, in_flags = sources
    texts = [*_texts(field) * 3][:3]
    yaml = _write_setting(tmp_path, key, texts[0]) if in_yaml else None
    environ = {field.variable: texts[1]} if in_environment else {}
    flags = {key: texts[2]} if in_flags else {}
    expected = (field.default, "default")
    if in_yaml:
        expected = (field.kind(texts[0]), str(yaml))
    if in_environment:
        expected = (field.kind(texts[1]), f"env {field.variable}")
    if in_flags:
        expected = (field.kind(texts[2]), f"flag --{key.replace('_', '-')}")

    resolved = resolve_settings(yaml, flags, environ)

    assert (_value(resolved.settings, key), resolved.sources[key]) == expected
    others = {other for other in FIELDS if other != key}
    assert {resolved.sources[other] for other in others} == {"default"}
    assert all(_value(resolved.settings, other) == FIELDS[other].default for other in others)


@pytest.mark.parametrize(
    ("mode", "in_flight", "codec"),
    [("async", "train", "none"), ("sync", "wait", "none"), ("safe", "wait", "bf16")],
)
def test_a_mode_decides_what_it_is_made_of(mode: str, in_flight: str, codec: str) -> None:
    given = {"exchange.codec": "none", "exchange.in_flight": "train", "exchange.mode": mode}
    resolved = resolve_settings(None, given, {"MINGA_EXCHANGE_MODE": "sync"})
    exchange = resolved.settings.exchange
    assert (exchange.mode, exchange.in_flight, exchange.codec) == (mode, in_flight, codec)
    said_by = "flag --exchange.codec" if codec == "none" else f"exchange.mode {mode}"
    assert resolved.sources["exchange.codec"] == said_by


def test_so_many_of_a_round_are_for_mode_sync_alone() -> None:
    flags = {"exchange.mode": "sync", "exchange.aggregate": "3"}
    assert resolve_settings(None, flags, {}).settings.exchange.aggregate == 3
    with pytest.raises(UsageError, match=r"is for exchange\.mode sync, not safe"):
        resolve_settings(None, {**flags, "exchange.mode": "safe"}, {})


@pytest.mark.parametrize(
    ("variable", "text", "key", "value"),
    [
        ("EPOCHS", "7", "train.epochs", 7),
        ("DATASET_URL", "/data/x", "data.path", "/data/x"),
        ("VAL_DATASET_URL", "/data/y", "data.val_path", "/data/y"),
        ("USE_WEBDATASET", "true", "data.format", "webdataset"),
        ("USE_WEBDATASET", "True", "data.format", "webdataset"),
    ],
)
def test_the_guides_variables_set_settings_and_beat_yaml(
    variable: str, text: str, key: str, value: object, tmp_path: Path
) -> None:
    yaml = _write_setting(tmp_path, key, _texts(FIELDS[key])[0])
    resolved = resolve_settings(yaml, {}, {variable: text})
    assert _value(resolved.settings, key) == value
    assert resolved.sources[key] == f"env {variable}"


def test_minga_variables_beat_the_guides() -> None:
    environ = {
        "EPOCHS": "7",
        "MINGA_TRAIN_EPOCHS": "8",
        "USE_WEBDATASET": "true",
        "MINGA_DATA_FORMAT": "folders",
    }
    resolved = resolve_settings(None, {}, environ)
    assert resolved.settings.train.epochs == 8
    assert resolved.sources["train.epochs"] == "env MINGA_TRAIN_EPOCHS"
    assert resolved.settings.data.format == "folders"


def test_an_empty_variable_is_not_set() -> None:
    environ = {"EPOCHS": "", "MINGA_OPTIMIZER_LR": "", "USE_WEBDATASET": "", "DATASET_URL": ""}
    assert resolve_settings(None, {}, environ) == resolve_settings(None, {}, {})


def test_webdataset_false_leaves_the_format_to_others(tmp_path: Path) -> None:
    yaml = _write_setting(tmp_path, "data.format", "webdataset")
    resolved = resolve_settings(yaml, {}, {"USE_WEBDATASET": "false"})
    assert resolved.sources["data.format"] == str(yaml)


@pytest.mark.parametrize("key", [key for key, field in FIELDS.items() if field.optional])
@pytest.mark.parametrize("written", ["none", "null", "~", ""])
def test_none_switches_an_optional_setting_off(key: str, written: str, tmp_path: Path) -> None:
    assert _value(resolve_settings(None, {key: "none"}, {}).settings, key) is None
    yaml = _write_setting(tmp_path, key, written)
    assert _value(resolve_settings(yaml, {}, {}).settings, key) is None


def test_none_is_a_codec_not_an_absence() -> None:
    assert resolve_settings(None, {"exchange.codec": "none"}, {}).settings.exchange.codec == "none"


@pytest.mark.parametrize("written", ["5e-4", "5.0e-4", "0.0005", "'0.0005'"])
def test_yaml_numbers_mean_what_they_look_like(written: str, tmp_path: Path) -> None:
    yaml = _write_setting(tmp_path, "optimizer.lr", written)
    assert resolve_settings(yaml, {}, {}).settings.optimizer.lr == 0.0005


def test_the_committed_train_yaml_names_every_setting_with_its_default() -> None:
    resolved = resolve_settings(TRAIN_YAML, {}, {})
    assert resolved.settings == Settings()
    assert set(resolved.sources.values()) == {str(TRAIN_YAML)}


@pytest.mark.parametrize("text", ["", "# nothing\n", "optimizer:\n", "optimizer: {}\n"])
def test_a_blank_file_or_section_changes_nothing(text: str, tmp_path: Path) -> None:
    assert resolve_settings(_write(tmp_path, text), {}, {}) == resolve_settings(None, {}, {})


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("optimizer.lr", "0"),
        ("optimizer.lr", "-0.1"),
        ("optimizer.lr", "nan"),
        ("optimizer.lr", "inf"),
        ("optimizer.lr", "fast"),
        ("optimizer.lr", "none"),
        ("optimizer.momentum", "1"),
        ("optimizer.momentum", "-0.1"),
        ("optimizer.clip_norm", "0"),
        ("train.batch_size", "0"),
        ("train.batch_size", "12.5"),
        ("train.epochs", "0"),
        ("train.epochs", "true"),
        ("train.seed", "-1"),
        ("exchange.codec", "gzip"),
        ("data.format", "none"),
        ("model.name", "none"),
        ("model.name", '""'),
    ],
)
def test_a_value_out_of_range_is_refused_naming_setting_value_place_and_what_is_allowed(
    key: str, text: str, tmp_path: Path
) -> None:
    yaml = _write_setting(tmp_path, key, text)
    bare, field = text.strip('"'), FIELDS[key]
    flag = f"flag --{key.replace('_', '-')}"
    ways = [
        (f"{yaml} line 2", lambda: resolve_settings(yaml, {}, {})),
        (flag, lambda: resolve_settings(None, {key: bare}, {})),
    ]
    if bare:
        environ = {field.variable: bare}
        ways.append((f"env {field.variable}", lambda: resolve_settings(None, {}, environ)))
    for place, resolve in ways:
        with pytest.raises(UsageError) as caught:
            resolve()
        assert caught.value.code == "config-value"
        assert caught.value.what == (f'{key} is "{bare}" ({place}); allowed is {field.allowed}')


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("optimizer.momentum", "0", 0.0),
        ("optimizer.momentum", "0.999", 0.999),
        ("optimizer.weight_decay", "0", 0.0),
        ("train.batch_size", "1", 1),
        ("train.epochs", "1", 1),
        ("train.seed", "0", 0),
        ("exchange.max_staleness", "0", 0),
    ],
)
def test_the_ends_of_a_range_are_allowed(key: str, text: str, value: object) -> None:
    assert _value(resolve_settings(None, {key: text}, {}).settings, key) == value


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("optimiser:\n  lr: 1\n", "config-unknown-key", ["optimiser", "line 1", "optimizer?"]),
        ("optimizer:\n  rate: 1\n", "config-unknown-key", ["optimizer.rate", "line 2"]),
        ("optimizer:\n  momentun: 1\n", "config-unknown-key", ["mean optimizer.momentum?"]),
        ("lr: 0.1\n", "config-unknown-key", ["unknown setting lr", "mean optimizer.lr?"]),
        ("train:\n  epochs: 1\n  epochs: 2\n", "config-file", ["line 3", "epochs", "line 2"]),
        ("train:\n  seed: 1\ntrain:\n  seed: 2\n", "config-file", ["line 3", "train", "line 1"]),
        ("train: 3\n", "config-file", ["line 1", "train must hold"]),
        ("- train\n", "config-file", ["line 1", "the file must hold"]),
        ("train: [\n", "config-file", ["cannot read", "line 2"]),
        ("train:\n  epochs: [1, 2]\n", "config-value", ["line 2", "train.epochs takes one"]),
    ],
)
def test_a_wrong_file_is_refused_with_its_name_and_line(
    text: str, code: str, words: list[str], tmp_path: Path
) -> None:
    path = _write(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        resolve_settings(path, {}, {})
    assert caught.value.code == code
    for word in [str(path), *words]:
        assert word in caught.value.what


def test_a_named_file_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*none\.yaml") as caught:
        resolve_settings(tmp_path / "none.yaml", {}, {})
    assert caught.value.code == "config-file"


def test_an_unknown_flag_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(UsageError, match=r"optimizer.rl .* mean optimizer.lr\?") as caught:
        resolve_settings(None, {"optimizer.rl": "1"}, {})
    assert caught.value.code == "config-unknown-key"


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("MINGA_LR", "MINGA_OPTIMIZER_LR"),
        ("MINGA_OPTIMIZER_MOMENTUN", "MINGA_OPTIMIZER_MOMENTUM"),
        ("MINGA_TOKN", "MINGA_TOKEN"),
    ],
)
def test_an_unknown_minga_variable_is_refused_with_the_nearest_one(
    variable: str, meant: str
) -> None:
    with pytest.raises(UsageError, match=f"{variable}; did you mean {meant}") as caught:
        resolve_settings(None, {}, {variable: "1"})
    assert caught.value.code == "config-unknown-variable"


def test_variables_of_others_are_left_alone() -> None:
    resolve_settings(None, {}, {"PATH": "/bin", "MINGLE": "1", "MINGA_TOKEN": "t", "RANK": "0"})


def test_webdataset_takes_true_or_false_only() -> None:
    with pytest.raises(UsageError, match='USE_WEBDATASET is "maybe"'):
        resolve_settings(None, {}, {"USE_WEBDATASET": "maybe"})


def test_settings_survive_json() -> None:
    settings = resolve_settings(None, {"optimizer.clip_norm": "none"}, {}).settings
    assert Settings.from_dict(settings.to_dict()) == settings


def test_every_setting_has_a_meaning_and_a_default_it_would_accept() -> None:
    for field in FIELDS.values():
        assert field.meaning.endswith("."), field.key
        assert field.parse("none" if field.default is None else str(field.default)) == field.default
