"""Plans against closed forms: links, processors, staleness, and the product's own pacing."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
import simpy

from minga.algorithm.layout import Layout
from minga.algorithm.pacing import EVERY_S, balance, worth_a_change
from minga.cli import main
from minga.plan.advice import helps
from minga.plan.network import SharedLink, fair_rates
from minga.plan.prediction import predict
from minga.plan.scenario import Costs, Pcs, Scenario, link_bytes_per_s, parse_pcs
from minga.plan.simulation import Events, Simulation
from minga.settings.schema import Codec
from minga.tasks.zoo import build_model, sizes
from support import ROOT

FREE = Costs(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
FAST_MBITS = 1e6
RESNET50 = Scenario(
    pcs=(Pcs(8, 1000, 1000),), parameters=25_557_032, buffers=53_120, train_images=1_281_167
)
RESNET18 = replace(RESNET50, parameters=11_271_432, buffers=9_600, train_images=100_000)
SMALL_CNN = replace(RESNET18, parameters=332_826, buffers=96)
MOMENT_S = 1e-3


def equal(count: int, link_mbits: float = 1000) -> tuple[Pcs, ...]:
    return (Pcs(count, 1000, link_mbits),)


# -- the link


@pytest.mark.parametrize(
    ("limits", "rates"),
    [
        ([], []),
        ([500, 500], [50, 50]),
        ([10, 500, 500], [10, 45, 45]),
        ([500, 10, 30], [60, 10, 30]),
        ([10, 20], [10, 20]),
    ],
)
def test_who_wants_little_gets_it_and_the_others_share_the_rest(
    limits: list[float], rates: list[float]
) -> None:
    assert fair_rates(limits, 100) == pytest.approx(rates)


def _ends(sent: list[tuple[float, float, float]]) -> list[float]:
    """When transfers of (begin, bytes, limit) are across a link of 100 bytes per second."""
    env = simpy.Environment()
    link, ends = SharedLink(env, 100), [0.0] * len(sent)

    def transfer(number: int, begin_s: float, size: float, limit: float) -> Events:
        yield env.timeout(begin_s)
        yield link.send(size, limit)
        ends[number] = env.now

    for number, each in enumerate(sent):
        env.process(transfer(number, *each))
    env.run()
    assert link.carried_bytes == pytest.approx(sum(size for _, size, _ in sent))
    return ends


def test_transfers_share_a_link_from_when_they_begin_until_they_end() -> None:
    inf = float("inf")
    assert _ends([(0, 100, inf)]) == pytest.approx([1])
    assert _ends([(0, 100, inf), (0, 100, inf)]) == pytest.approx([2, 2])
    # alone for 0.5 s, then half each: 50 bytes are left of both
    assert _ends([(0, 100, inf), (0.5, 50, inf)]) == pytest.approx([1.5, 1.5])
    # one cannot take more than 20; the other gets 80, and all that it wants afterwards
    assert _ends([(0, 100, 20), (0, 160, inf)]) == pytest.approx([5, 2])
    assert _ends([(0, 100, 20), (3, 160, inf)]) == pytest.approx([5, 5])


def test_what_a_link_carried_counts_what_is_under_way() -> None:
    env = simpy.Environment()
    link = SharedLink(env, 100)
    link.send(1000)
    env.run(until=2.5)
    assert link.carried_bytes == pytest.approx(250)


# -- rates


def test_one_pc_on_a_fast_link_trains_as_fast_as_it_can() -> None:
    alone = replace(RESNET50, pcs=equal(1, FAST_MBITS), ps_link_mbits=FAST_MBITS, jitter=0.0)
    assert predict(replace(alone, costs=FREE)).share == pytest.approx(1)
    # what cannot be hidden: H steps, then encode and rebase
    found = predict(replace(alone, local_steps=10))
    not_training_s = (alone.costs.hold_ns + alone.costs.rebase_ns) * 1e-9 * alone.parameters
    assert found.share == pytest.approx(1.28 / (1.28 + not_training_s), rel=1e-6)
    assert found.share < 0.96, "the control: it does cost something"


def test_a_full_link_decides_how_many_exchanges_there_are() -> None:
    bound = replace(RESNET18, local_steps=1, codec="none", pcs=equal(32))
    exchanges_per_s = link_bytes_per_s(1000) / bound.exchange_bytes
    found = predict(bound)
    assert found.limit == "ps link"
    assert found.samples_per_s == pytest.approx(0.95 * 128 * exchanges_per_s, rel=0.05)
    doubled = predict(replace(bound, ps_link_mbits=2000))
    assert doubled.samples_per_s == pytest.approx(2 * found.samples_per_s, rel=0.06)


def _mean_value_analysis(workers: int, think_s: float, stations_s: list[float]) -> float:
    """Throughput of a closed network of processor-sharing stations (Reiser, Lavenberg 1980)."""
    queues, per_s = [0.0] * len(stations_s), 0.0
    for present in range(1, workers + 1):
        takes_s = [s * (1 + queue) for s, queue in zip(stations_s, queues, strict=True)]
        per_s = present / (think_s + sum(takes_s))
        queues = [per_s * each for each in takes_s]
    return per_s


@pytest.mark.parametrize("workers", [1, 2, 4, 8, 16])
def test_who_shares_a_link_keeps_queueing_theory_and_who_takes_turns_does_better(
    workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without overlap and with free processors this is a closed network: compute, up, down."""
    waiting = replace(RESNET18, in_flight="wait", local_steps=1, costs=FREE, jitter=0.5)
    lan = replace(waiting, pcs=equal(workers, FAST_MBITS))
    across_s = waiting.exchange_bytes / link_bytes_per_s(1000)
    expected = _mean_value_analysis(workers, 0.128, [across_s, across_s])
    in_turn = predict(lan).samples_per_s / 128
    monkeypatch.setattr("minga.plan.simulation.HOLD_S", 0.0)
    shared = predict(lan).samples_per_s / 128
    assert shared == pytest.approx(expected, rel=0.08)
    assert 0.95 * shared <= in_turn <= 1.02 / across_s
    if workers == 4:
        assert in_turn > 1.1 * shared


def test_overlap_hides_an_exchange_and_waiting_does_not() -> None:
    two = replace(RESNET50, pcs=equal(2), local_steps=16)
    assert predict(two).share > predict(replace(two, in_flight="wait")).share + 0.15


@pytest.mark.parametrize(
    ("cores", "costs", "exchange_s"),
    [
        (1, Costs(), (1.6 + 2.0) * 0.011271432 + 2 * RESNET18.forward_s),
        (16, replace(FREE, apply_ns=20.0), 20.0 * 0.011271432),
    ],
    ids=["one core does all", "only one applies at a time"],
)
def test_a_busy_ps_decides_how_many_exchanges_there_are(
    cores: int, costs: Costs, exchange_s: float
) -> None:
    lan = replace(RESNET18, pcs=equal(16, FAST_MBITS), ps_link_mbits=FAST_MBITS)
    found = predict(replace(lan, ps_cores=cores, costs=costs, local_steps=1))
    assert found.limit == "ps CPU"
    assert found.samples_per_s / 128 * exchange_s == pytest.approx(1, rel=0.03)
    assert predict(replace(lan, ps_cores=16, local_steps=1)).samples_per_s > found.samples_per_s


# -- unequal PCs


def test_a_pc_on_a_slow_link_takes_little_from_the_others() -> None:
    others = Pcs(4, 1000, 1000)
    alone = predict(replace(RESNET50, pcs=(others,))).kinds[0]
    beside, slow = predict(replace(RESNET50, pcs=(others, Pcs(1, 1000, 20)))).kinds
    assert beside.samples_per_s >= 0.95 * alone.samples_per_s
    assert slow.limit == "own link"
    # its round is nothing but two transfers; H is at its most
    round_s = 2 * RESNET50.exchange_bytes / link_bytes_per_s(20)
    assert slow.samples_per_s == pytest.approx(64 * 128 / round_s, rel=0.03)


def test_unequal_pcs_all_train_as_fast_as_they_can_and_push_equally_often() -> None:
    found = predict(replace(RESNET50, pcs=(Pcs(3, 1000, 1000), Pcs(2, 250, 1000))))
    fast, slow = found.kinds
    assert min(fast.share, slow.share) > 0.95
    assert fast.local_steps == pytest.approx(4 * slow.local_steps, rel=0.15)
    fixed = predict(replace(found.scenario, local_steps=16)).kinds
    assert fixed[0].staleness_max < fixed[1].staleness_max, "the control: equal H is unfair"


@pytest.mark.parametrize("count", [1, 2, 8])
def test_equal_pcs_are_as_stale_as_there_are_others(count: int) -> None:
    found = predict(replace(RESNET50, pcs=equal(count)))
    assert found.staleness_mean == pytest.approx(count - 1, abs=0.1)


# -- the pacing is the product's


@pytest.mark.parametrize("count", [4, 16, 32])
def test_h_is_what_the_ps_would_choose_from_the_same_figures(count: int) -> None:
    def granted() -> dict[int, int]:
        return {number: worker.granted for number, worker in enumerate(run.workers)}

    run = Simulation(replace(RESNET50, pcs=equal(count)))
    run.run(12 * EVERY_S - MOMENT_S)
    before = granted()
    chosen = balance(run.paces(), RESNET50.train_images, overlap=True).steps
    run.run(2 * MOMENT_S)
    assert granted() == (chosen if worth_a_change(chosen, before) else before)
    assert set(granted().values()) != {8}, "the control: 8 is what they began with"


def test_a_fixed_h_stays() -> None:
    assert predict(replace(RESNET50, local_steps=5)).kinds[0].local_steps == 5


def test_a_plan_is_the_same_each_time() -> None:
    lan = replace(RESNET50, pcs=(Pcs(5, 1000, 1000), Pcs(2, 300, 50)))
    assert predict(lan) == predict(lan)


def test_a_pc_that_hardly_moves_does_not_keep_a_plan_from_ending() -> None:
    found = predict(replace(RESNET18, pcs=(Pcs(1, 1000, 1000), Pcs(1, 1000, 0.001))))
    assert found.kinds[1].samples_per_s < 1


# -- what was measured


def measured() -> list[dict[str, Any]]:
    """The rows of benchmarks/lan.py that a plan can be made for."""
    rows = json.loads((ROOT / "benchmarks" / "results" / "lan.json").read_text())["rows"]
    return [row for row in rows if row["system"] in ("minga", "minga-bound") and not row["void"]]


def planned(row: dict[str, Any]) -> float:
    """Return the samples per second that a plan predicts for a row; its costs are the defaults."""
    subjects = {"resnet18": RESNET18, "resnet50": RESNET50, "small-cnn": SMALL_CNN}
    link_mbits, rate = 1000 / row["slowed"], 1000 / row["slowed"]
    scenario = replace(
        subjects[row["model"]],
        pcs=(Pcs(row["workers"], rate, link_mbits),),
        ps_link_mbits=link_mbits,
        ps_cores=2,
        local_steps=1 if row["system"] == "minga-bound" else None,
    )
    return predict(scenario).samples_per_s


@pytest.mark.parametrize("row", measured(), ids=lambda row: f"{row['model']}-{row['workers']}")
def test_a_plan_is_within_15_percent_of_what_was_measured(row: dict[str, Any]) -> None:
    assert planned(row) == pytest.approx(row["samples_per_s"], rel=0.15)


def test_a_plan_for_other_links_is_not() -> None:
    """The control: the network-bound row with links of half the rate."""
    (row,) = [row for row in measured() if row["system"] == "minga-bound"]
    assert planned({**row, "slowed": 2 * row["slowed"]}) < 0.85 * row["samples_per_s"]


# -- words and numbers


@pytest.mark.parametrize(
    ("codec", "exchange_bytes"),
    [("int8", 25_557_032 * 257 / 256), ("bf16", 2 * 25_557_032), ("none", 4 * 25_557_032)],
)
def test_a_push_has_the_codecs_bytes_and_the_buffers(codec: Codec, exchange_bytes: float) -> None:
    found = replace(RESNET50, codec=codec).exchange_bytes
    assert found == pytest.approx(exchange_bytes + 4 * 53_120)


def test_the_defaults_are_resnet_50s() -> None:
    parameters, costs = 25_557_032e-9, Costs()
    assert costs.encode_ns * parameters == pytest.approx(0.050, rel=0.03)
    assert costs.rebase_ns * parameters == pytest.approx(0.045, rel=0.03)
    assert costs.apply_ns * parameters == pytest.approx(0.040, rel=0.03)
    assert costs.reply_ns * parameters == pytest.approx(0.050, rel=0.03)


@pytest.mark.parametrize(("name", "classes", "side"), [("small-cnn", 10, 8), ("resnet18", 200, 64)])
def test_a_model_is_counted_as_it_travels(name: str, classes: int, side: int) -> None:
    model = build_model(name, classes, side, seed=0)
    weights, buffers = Layout(model).flatten(model.state_dict())
    assert sizes(name, classes, side) == (weights.numel(), buffers.numel())


def test_pcs_are_read_one_by_one_and_in_lists() -> None:
    assert parse_pcs(("4x1000, 2x400.5@100", "300@20"), 1000) == (
        Pcs(4, 1000, 1000),
        Pcs(2, 400.5, 100),
        Pcs(1, 300, 20),
    )


def test_what_would_help_is_told_where_something_would() -> None:
    bound = predict(replace(RESNET50, pcs=equal(64), codec="bf16", costs=Costs.of("bf16")))
    assert [each.what for each in helps(bound)] == [
        "the codec int8",
        "a ps link of 2500 Mbit/s",
        "only 32 of the PCs",
    ]
    assert min(each.samples_per_s for each in helps(bound)) > bound.samples_per_s
    assert helps(predict(RESNET50)) == [], "nothing holds 8 PCs up"


# -- the command


def test_plan_alone_prints_imagenet_with_resnet_50_on_4_to_64_pcs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["plan"]) == 0
    shown = capsys.readouterr().out
    head, *lines = shown.splitlines()
    assert head.startswith("resnet50, 25.6 M parameters, int8: 25.9 MB each way; ps: 1000 Mbit/s")
    rows = [line.split() for line in lines if re.match(r" *\d+  ", line)]
    assert [row[0] for row in rows] == ["4", "8", "16", "32", "64"]
    assert [" ".join(row[9:-1]).rpartition("% ")[2] for row in rows] == [
        *["compute"] * 3,
        *["ps link"] * 2,
    ]
    assert "network-bound: an exchange takes" in shown
    assert "a ps link of 2500 Mbit/s: " in shown
    assert max(map(len, lines[:6])) <= 80, "it fits a terminal"


def test_plan_tells_each_kind_of_pc(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--pcs", "2x1000", "--pcs", "1x1000@20", "--epochs=1"]) == 0
    shown = capsys.readouterr().out
    assert " EPOCH\n" in shown
    assert re.search(r"^2x1000@1000 .* compute *$", shown, flags=re.MULTILINE)
    assert re.search(r"^1x1000@20 .* own link *$", shown, flags=re.MULTILINE)
    assert "100 Mbit/s in place of 20: " in shown


def test_plan_as_json_has_what_the_tables_have(capsys: pytest.CaptureFixture[str]) -> None:
    words = "plan --json --model small-cnn --classes 10 --image-size 8 --train-images 1347"
    assert main([*words.split(), "--pcs=1x300,1x50", "--scale=2,3", "--epochs=12"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["parameters"] == 10_266
    assert [each["pcs"] for each in shown["plans"]] == [3, 4]
    first = shown["plans"][0]
    assert first["samples_per_s"] == pytest.approx(650, rel=0.05)
    assert first["hours"] == pytest.approx(12 * 1347 / first["samples_per_s"] / 3600)
    assert [kind["pcs"] for kind in first["kinds"]] == [2, 1]
