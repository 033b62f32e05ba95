"""When `make deploy` packs the data first, and what it leaves in build/data."""

from __future__ import annotations

from pathlib import Path

import pytest
from unit.test_data_shards import TRAIN, VAL, folders

from minga.data.dataset import open_data
from minga.data.packing import NOTE, Tree
from minga.deploy import packing
from minga.deploy.inventory import names_by_address, workers_of
from minga.deploy.packing import config_of, pays, sent_to_any
from minga.errors import DataError
from support import needs

needs("ansible")

SENT = "[ps]\na\n[workers]\na data_folder=/mnt/x\nb\n"
OWN = "[ps]\na\n[workers]\na\nb\n[workers:vars]\ndata_folder=/mnt/x\n"


@pytest.fixture
def inventory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An inventory of a project with data in data/flowers; DATASET names them."""
    monkeypatch.setattr(packing, "ROOT", tmp_path)
    monkeypatch.setattr(packing, "PACKED", tmp_path / "build" / "data")
    monkeypatch.setenv("DATASET", "data/flowers/")
    monkeypatch.delenv("VAL_DATASET", raising=False)
    folders(tmp_path / "data" / "flowers")
    path = tmp_path / "lan.ini"
    path.write_text(SENT)
    return path


def _packs(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("build/data/*") if path.name != ".lock")


# -- rules


@pytest.mark.parametrize(
    ("images", "mean_bytes", "pay"),
    [
        (100_000, 2_200, True),  # Tiny-ImageNet
        (1_281_167, 110_000, False),  # ImageNet
        (10, 65_535, True),
        (10, 65_536, False),
        (0, 0, False),
    ],
)
def test_small_images_are_packed(images: int, mean_bytes: int, pay: bool) -> None:
    assert pays(Tree("", images, images * mean_bytes)) is pay


def test_the_data_are_where_the_playbooks_look() -> None:
    root = packing.ROOT
    assert config_of({}).path == f"{root}/data/tiny-imagenet-200"
    assert config_of({"DATASET": "", "VAL_DATASET": ""}) == config_of({})
    named = config_of({"DATASET": "/mnt/flowers//", "VAL_DATASET": "data/val/"})
    assert (named.path, named.val_path) == ("/mnt/flowers", f"{root}/data/val")


@pytest.mark.parametrize(
    ("text", "any_"),
    [
        (SENT, True),
        (OWN, False),
        (OWN.replace("[workers]\na\nb", "[workers:children]\nlab\n[lab]\na\nb"), False),
        (SENT.replace("[workers]\n", "[workers:children]\nlab\n[lab]\n"), True),
        ("[ps]\na\n", False),
        ("nonsense [", False),
    ],
)
def test_who_is_sent_data_is_read_from_the_inventory(text: str, any_: bool, tmp_path: Path) -> None:
    path = tmp_path / "lan.ini"
    path.write_text(text)
    assert sent_to_any(workers_of(path)) is any_


def test_a_pc_is_called_by_its_address_or_its_name() -> None:
    hosts = {
        "a": {"ansible_host": "10.0.0.1", "ansible_connection": "local"},
        "b": {"ansible_host": "10.0.0.2"},
        "c": {"cuda": "cpu"},
    }
    assert names_by_address(hosts) == {"here": "a", "10.0.0.2": "b", "c": "c"}


# -- packing


def test_data_are_packed_once(
    inventory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packing.main(inventory=inventory)
    said = capsys.readouterr()
    assert (said.out, said.err.split(" into ")[0]) == ("", f"packed {TRAIN + VAL} images")
    assert _packs(tmp_path) == ["flowers"]
    pack = tmp_path / "build" / "data" / "flowers"
    here = config_of({"DATASET": "data/flowers"})
    there = config_of({"DATASET": str(pack)})
    assert open_data(there).facts == open_data(here).facts
    written_ns = (pack / NOTE).stat().st_mtime_ns
    packing.main(inventory=inventory)
    assert capsys.readouterr().err == ""
    assert (pack / NOTE).stat().st_mtime_ns == written_ns
    (tmp_path / "data/flowers/wnids.txt").write_text("cat\ndog\nowl\n")
    (tmp_path / "build/data/flowers.x.part").mkdir()  # by one that was killed
    packing.main(inventory=inventory)
    assert (pack / NOTE).stat().st_mtime_ns != written_ns, "control: other files, another pack"
    assert _packs(tmp_path) == ["flowers"]


def test_both_halves_come_into_one_pack(
    inventory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data" / "flowers"
    whole = open_data(config_of({"DATASET": str(data)})).facts
    (data / "val").rename(tmp_path / "data" / "other")
    monkeypatch.setenv("VAL_DATASET", "data/other")
    packing.main(inventory=inventory)
    assert _packs(tmp_path) == ["flowers"]
    pack = config_of({"DATASET": str(tmp_path / "build" / "data" / "flowers")})
    assert open_data(pack).facts == whole


def test_what_goes_as_it_is_leaves_no_pack_behind(
    inventory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither of data that grew, nor of shards, nor of what is not there."""
    packing.main(inventory=inventory)
    pack = tmp_path / "build" / "data" / "flowers"
    shards = tmp_path / "shards" / "flowers"
    shards.parent.mkdir()
    pack.rename(shards)
    (shards / NOTE).unlink()
    packing.main(inventory=inventory)
    assert _packs(tmp_path) == ["flowers"], "control"

    with monkeypatch.context() as patch:
        patch.setattr(packing, "SMALL_BYTES", 100)
        packing.main(inventory=inventory)
        assert _packs(tmp_path) == []
    packing.main(inventory=inventory)
    monkeypatch.setenv("DATASET", str(shards))
    packing.main(inventory=inventory)
    assert _packs(tmp_path) == []
    monkeypatch.setenv("DATASET", "data/nowhere")
    packing.main(inventory=inventory)
    assert _packs(tmp_path) == []


def test_nobody_to_send_to_is_nothing_to_pack(inventory: Path, tmp_path: Path) -> None:
    inventory.write_text(OWN)
    packing.main(inventory=inventory)
    assert not (tmp_path / "build").exists()


def test_data_without_an_image_are_told_as_a_worker_would(inventory: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "data" / "flowers").rglob("*.png"):
        path.unlink()
    with pytest.raises(DataError) as raised:
        packing.main(inventory=inventory)
    assert (raised.value.code, raised.value.exit_status) == ("data-empty", 4)
    assert _packs(tmp_path) == []
