"""Leases become batches: every position once, the same pixels however they are cut."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from minga.data.augment import Draws, Images, draws, flip, padded_crop, random_box
from minga.data.leases import Lease, ids_crc, permutation, sample_ids
from minga.data.loader import Batch, BatchLoader, evaluation_batches
from minga.data.split import Labels, Split
from minga.errors import DataError

COUNT, SEED, WAIT_S = 40, 5, 30.0


class Memory:
    """Images in memory; a sample's pixels and label say which it is. May wait or fail."""

    def __init__(self, count: int = COUNT, side: int = 8) -> None:
        self.labels: Labels = np.arange(count)
        self._side = side
        self.open = threading.Event()
        self.open.set()
        self.asked = threading.Event()
        self.broken: set[int] = set()
        self.read: set[int] = set()

    def name(self, index: int) -> str:
        return f"memory-{index}.png"

    def encoded(self, index: int) -> bytes:
        self.asked.set()
        assert self.open.wait(WAIT_S), "a test forgot to open the gate"
        if index in self.broken:
            raise OSError("the disk is gone")
        self.read.add(int(index))
        shape = (self._side, self._side, 3)
        image = np.random.default_rng(index).integers(0, 256, shape, dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        return buffer.getvalue()


Make = Callable[..., BatchLoader]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[BatchLoader] = []

    def loader(source: Memory | None = None, batch_size: int = 8, **choices) -> BatchLoader:
        choices = {"seed": SEED, "augment": "none", **choices}
        made.append(
            BatchLoader(Split(source or Memory(), size=8), batch_size=batch_size, **choices)
        )
        return made[-1]

    yield loader
    for each in made:
        each.close()


def lease(number: int, start: int, stop: int, epoch: int = 0, kind: str = "train") -> Lease:
    return Lease(number, kind, epoch, start, stop)


def taken(loader: BatchLoader) -> list[Batch]:
    """Take all that is there."""
    return list(iter(lambda: loader.next(WAIT_S), None))


def cut(epoch: int, *stops: int) -> list[Lease]:
    """Cut an epoch's positions into leases that end at ``stops``."""
    starts = (0, *stops)
    return [
        lease(100 * epoch + n, a, b, epoch)
        for n, (a, b) in enumerate(zip(starts, stops, strict=False))
    ]


def pixels_by_position(batches: list[Batch]) -> dict[tuple[int, int], bytes]:
    """Return each (epoch, position)'s pixels."""
    found: dict[tuple[int, int], bytes] = {}
    for batch in batches:
        positions = [(s.epoch, at) for s in batch.segments for at in range(s.start, s.stop)]
        for place, image in zip(positions, batch.images, strict=True):
            assert place not in found
            found[place] = image.numpy().tobytes()
    return found


# -- positions


def test_every_position_is_delivered_exactly_once_in_order(make: Make) -> None:
    loader = make()
    leases = cut(0, 5, 19, 40) + cut(1, 11, 40)
    for each in leases:
        loader.add(each)
    assert loader.pending() == 80

    batches = taken(loader)

    delivered = [
        (each.epoch, at)
        for batch in batches
        for each in batch.segments
        for at in range(each.start, each.stop)
    ]
    assert delivered == [(epoch, at) for epoch in (0, 1) for at in range(COUNT)]
    held = {each.id: each for each in leases}
    for each in (segment for batch in batches for segment in batch.segments):
        assert held[each.lease].epoch == each.epoch
        assert held[each.lease].start <= each.start < each.stop <= held[each.lease].stop
    assert loader.pending() == 0
    assert loader.next(WAIT_S) is None


def test_a_batch_spans_leases_and_epochs(make: Make) -> None:
    loader = make(batch_size=12)
    for each in (lease(1, 30, 35), lease(2, 38, 40), lease(3, 0, 20, epoch=1)):
        loader.add(each)

    first = loader.next(WAIT_S)

    assert first is not None
    spans = [(each.lease, each.epoch, each.start, each.stop) for each in first.segments]
    assert spans == [(1, 0, 30, 35), (2, 0, 38, 40), (3, 1, 0, 5)]
    assert len(first.labels) == 12


def test_samples_and_crcs_are_those_of_the_epochs_permutation(make: Make) -> None:
    loader = make(batch_size=7)
    for each in cut(3, 9, 26, 40):
        loader.add(each)
    order = permutation(SEED, 3, COUNT)

    for batch in taken(loader):
        expected = np.concatenate([order[each.start : each.stop] for each in batch.segments])
        assert batch.labels.tolist() == expected.tolist()
        for each in batch.segments:
            assert each.crc == ids_crc(order[each.start : each.stop])
            # control: another epoch's, or another seed's, samples have another CRC
            assert each.crc != ids_crc(permutation(SEED, 4, COUNT)[each.start : each.stop])
            assert each.crc != ids_crc(permutation(SEED + 1, 3, COUNT)[each.start : each.stop])


def test_images_and_labels_belong_together(make: Make) -> None:
    loader, source = make(), Memory()
    loader.add(lease(1, 0, COUNT))

    for batch in taken(loader):
        assert batch.images.dtype == torch.uint8
        assert batch.images.shape == (len(batch.labels), 3, 8, 8)
        assert batch.images.permute(0, 2, 3, 1).is_contiguous(), "as they were read: no copy"
        for image, label in zip(batch.images, batch.labels, strict=True):
            with Image.open(io.BytesIO(source.encoded(int(label)))) as original:
                assert (image.permute(1, 2, 0).numpy() == np.asarray(original)).all()


@pytest.mark.parametrize(("samples", "sizes"), [(40, [16, 16, 8]), (32, [16, 16]), (3, [3])])
def test_only_the_last_batch_is_short(make: Make, samples: int, sizes: list[int]) -> None:
    loader = make(batch_size=16)
    loader.add(lease(1, 0, samples))
    assert [len(batch.labels) for batch in taken(loader)] == sizes


def test_leases_that_come_later_fill_the_batch_that_nobody_waits_for(make: Make) -> None:
    loader = make(batch_size=16)
    loader.add(lease(1, 0, 16))
    assert len(loader.next(WAIT_S).labels) == 16
    loader.add(lease(2, 16, 20))
    loader.add(lease(3, 20, 32))
    assert [len(batch.labels) for batch in taken(loader)] == [16]


# -- augmentation


def test_a_position_looks_the_same_however_the_epoch_is_cut(make: Make) -> None:
    def seen(batch_size: int, *stops: int, seed: int = SEED, augment: str = "crop-flip"):
        loader = make(batch_size=batch_size, augment=augment, seed=seed)
        for each in cut(2, *stops):
            loader.add(each)
        return pixels_by_position(taken(loader))

    whole = seen(40, 40)

    assert seen(7, 3, 4, 31, 40) == whole
    assert seen(16, 20, 40) == whole
    assert seen(40, 40, augment="none") != whole  # controls
    assert seen(40, 40, seed=SEED + 1) != whole


def test_a_sample_looks_different_in_the_next_epoch(make: Make) -> None:
    loader = make(Memory(1), batch_size=1, augment="crop-flip")
    for epoch in range(8):
        loader.add(lease(epoch, 0, 1, epoch))
    assert len({batch.images.numpy().tobytes() for batch in taken(loader)}) > 4


def test_random_numbers_depend_on_seed_epoch_and_position_only() -> None:
    whole = draws(SEED, 1, 0, 3000)

    assert whole.shape == (3000, 5)
    assert (draws(SEED, 1, 1000, 1030) == whole[1000:1030]).all()  # across a block's border
    assert (draws(SEED, 1, 2048, 2049) == whole[2048:2049]).all()
    assert (draws(SEED, 2, 0, 3000) != whole).all()
    assert (draws(SEED + 1, 1, 0, 3000) != whole).all()
    assert len(np.unique(whole)) == whole.size  # no block repeats another


def one_row(**named: float) -> Draws:
    """Return a row of numbers: flip, x, y, area, ratio."""
    values = {"flip": 0.9, "x": 0.5, "y": 0.5, "area": 0.5, "ratio": 0.5, **named}
    return np.array([list(values.values())])


def picture(side: int = 16) -> Images:
    return np.arange(side * side * 3, dtype=np.uint8).reshape(1, side, side, 3)


def test_the_crop_shifts_by_up_to_an_eighth_and_mirrors_at_the_border() -> None:
    whole = picture()

    assert (padded_crop(whole, one_row()) == whole).all()
    moved = padded_crop(whole, one_row(x=0.0, y=0.999))
    assert (moved[:, :-2, 2:] == whole[:, 2:, :-2]).all()
    assert (moved[:, :-2, 1] == whole[:, 2:, 1]).all()  # column -1 mirrors column 1
    shifts = {padded_crop(whole, one_row(x=x)).tobytes() for x in np.linspace(0, 0.999, 50)}
    assert len(shifts) == 5


def test_half_of_the_images_are_flipped() -> None:
    whole = picture()
    assert (flip(whole.copy(), one_row(flip=0.49)) == whole[:, :, ::-1]).all()
    assert (flip(whole.copy(), one_row(flip=0.5)) == whole).all()


def test_the_shown_part_of_a_large_image_lies_within_it() -> None:
    for row in np.random.default_rng(0).random((300, 5)):
        left, top, right, bottom = random_box(200, 100, row)
        assert 0 <= left < right <= 200
        assert 0 <= top < bottom <= 100
        assert (right - left) * (bottom - top) <= 200 * 100
    left, top, right, bottom = random_box(100, 100, one_row(area=0.0)[0])
    assert (right - left) * (bottom - top) == pytest.approx(800)


# -- when things go wrong


def test_clear_drops_leases_batches_and_what_is_being_read(make: Make) -> None:
    source = Memory()
    source.open.clear()
    loader = make(source, batch_size=8)
    loader.add(lease(1, 0, 20))
    assert source.asked.wait(WAIT_S)  # the first batch is being read

    loader.clear()
    assert (loader.pending(), loader.next(0)) == (0, None)
    loader.add(lease(2, 20, 40))
    source.open.set()

    batches = taken(loader)
    assert {each.lease for batch in batches for each in batch.segments} == {2}
    assert sum(len(batch.labels) for batch in batches) == 20


def test_an_error_in_reading_reaches_the_training_loop_until_cleared(make: Make) -> None:
    source = Memory()
    loader = make(source)
    source.broken = set(range(COUNT))
    loader.add(lease(1, 0, 16))
    for _ in range(2):  # it stays
        with pytest.raises(DataError, match=r"images cannot be read.*the disk is gone"):
            loader.next(WAIT_S)

    source.broken = set()
    loader.clear()
    loader.add(lease(2, 0, 8))
    assert [len(batch.labels) for batch in taken(loader)] == [8]


def test_a_batch_read_before_an_error_is_delivered_first(make: Make) -> None:
    source = Memory()
    source.broken = set(permutation(SEED, 0, COUNT)[8:16].tolist())
    loader = make(source, prefetch=2)
    loader.add(lease(1, 0, 16))
    with loader._changed:
        assert loader._changed.wait_for(lambda: loader._error, WAIT_S)

    batch = loader.next(WAIT_S)
    assert batch is not None
    assert [(each.start, each.stop) for each in batch.segments] == [(0, 8)]
    with pytest.raises(DataError, match="the disk is gone"):
        loader.next(WAIT_S)


def test_data_that_do_not_come_in_time_are_an_error_and_may_come_later(make: Make) -> None:
    source = Memory()
    source.open.clear()
    loader = make(source)
    loader.add(lease(1, 0, 8))

    with pytest.raises(DataError, match=r"within 0\.01 s") as raised:
        loader.next(0.01)
    assert raised.value.code == "data-slow"

    source.open.set()
    batch = loader.next(WAIT_S)
    assert batch is not None
    assert len(batch.labels) == 8


def test_reading_ahead_stops_at_what_may_wait(make: Make) -> None:
    source = Memory()
    loader = make(source, batch_size=4, prefetch=2)
    loader.add(lease(1, 0, COUNT))
    assert loader.next(WAIT_S) is not None
    with loader._changed:
        assert loader._changed.wait_for(lambda: len(loader._ready) == 2, WAIT_S)
    loader.close()  # ends the thread: what it has read by now is all

    assert len(source.read) == 3 * 4
    assert loader.pending() == COUNT - 4


def test_closing_ends_the_thread(make: Make) -> None:
    loader = make()
    assert loader._thread.is_alive()
    loader.close()
    assert not loader._thread.is_alive()


# -- leases and evaluation


def test_a_lease_survives_the_wire() -> None:
    sent = lease(7, 3, 9, epoch=2)
    assert msgspec.json.decode(msgspec.json.encode(sent), type=Lease) == sent
    assert msgspec.json.encode(sent) == b'[7,"train",2,3,9]'


def test_what_a_lease_stands_for_depends_on_its_kind() -> None:
    train, calibrate, validate = (
        sample_ids(lease(1, 0, COUNT, kind=kind), SEED, COUNT).tolist()
        for kind in ("train", "calibrate", "validate")
    )
    assert validate == list(range(COUNT))
    assert sorted(train) == sorted(calibrate) == validate
    assert train != calibrate != validate != train
    later = sample_ids(lease(1, 0, COUNT, epoch=1), SEED, COUNT)
    assert later.tolist() != train
    with pytest.raises(ValueError, match="read-only"):
        permutation(SEED, 0, COUNT)[0] = 1


@pytest.mark.parametrize("kind", ["validate", "calibrate"])
def test_evaluation_reads_a_lease_plain_and_in_order(kind: str) -> None:
    split = Split(Memory(), size=8)
    chunk = lease(1, 5, 30, kind=kind)

    batches = list(evaluation_batches(split, chunk, seed=SEED, batch_size=10))

    assert [len(labels) for _, labels in batches] == [10, 10, 5]
    ids = sample_ids(chunk, SEED, COUNT)
    assert torch.cat([labels for _, labels in batches]).tolist() == ids.tolist()
    plain, _ = split.read(ids)
    shown = torch.cat([images for images, _ in batches])
    assert shown.dtype == torch.uint8
    assert (shown.permute(0, 2, 3, 1).numpy() == plain).all()


def test_evaluation_says_that_images_cannot_be_read() -> None:
    source = Memory()
    source.broken = set(range(COUNT))
    chunk = lease(1, 0, 8, kind="validate")
    with pytest.raises(DataError, match=r"memory-0\.png"):
        next(evaluation_batches(Split(source, size=8), chunk, seed=SEED, batch_size=8))
