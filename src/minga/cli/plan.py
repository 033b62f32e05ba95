"""``minga plan``: predict a run on given PCs and links."""

from __future__ import annotations

import json as json_format
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.table import Table
from rich.text import Text

from minga.console import duration, print_result, results
from minga.plan.outcome import COMPUTE
from minga.settings.options import optional
from minga.settings.schema import Codec, InFlight

if TYPE_CHECKING:
    from minga.plan.advice import Change
    from minga.plan.outcome import KindOutcome, Outcome
    from minga.plan.scenario import Pcs, Scenario

_Count = Annotated[int, Parameter(validator=Number(gte=1))]
_Rate = Annotated[float, Parameter(validator=Number(gt=0))]
_GIVEN_NOTHING = (("1x1000",), "4,8,16,32,64")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedRun:
    """The training; the defaults are ImageNet-1k with ResNet-50."""

    model: str = "resnet50"
    """Any torchvision classification model, or small-cnn."""
    classes: Annotated[int, Parameter(validator=Number(gte=2))] = 1000
    """Classes."""
    image_size: _Count = 224
    """Side in pixels."""
    train_images: _Count = 1_281_167
    """Images of the training set."""
    epochs: _Count = 90
    """Passes over it."""
    batch_size: _Count = 128
    """Images per local step; the PCs' rates refer to it."""
    codec: Codec = "int8"
    """Encoding of pushes and replies."""
    in_flight: InFlight = "train"
    """A worker trains, or waits, while a push is in flight."""
    local_steps: _Count | None = None
    """Local steps between two exchanges (H); none balances them like a run."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedLan:
    """The PCs and links."""

    pcs: Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)] = ()
    """COUNTxIMAGES_PER_S, with @MBIT_PER_S for another link: 8x1000, 1x300@20; repeatable."""
    scale: Annotated[str | None, optional()] = None
    """Counts of the first kind of PC, one row each: 4,8,16."""
    pc_link: _Rate = 1000.0
    """Mbit/s of a PC's link, each way."""
    ps_link: _Rate = 1000.0
    """Mbit/s of the ps's link, each way."""
    ps_cores: _Count = 4
    """Cores of the ps's PC."""


_RUN = PlannedRun()
_LAN = PlannedLan()


def plan(
    *,
    run: PlannedRun = _RUN,
    lan: PlannedLan = _LAN,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Predict samples per second, H and what saturates, by a simulation of the exchange.

    Without --pcs and --scale: 4 to 64 PCs that train 1000 images/s each.

    Args:
        run: the training.
        lan: the PCs and links.
        json: One JSON object instead of tables.
    """
    from minga.plan.advice import helps
    from minga.plan.prediction import predict

    scenarios = _scenarios(run, lan)
    outcomes = [predict(each) for each in scenarios]
    held_up = [each for each in outcomes if each.limit != COMPUTE][-1:]
    changes = [change for each in held_up for change in helps(each)]
    if json:
        shown = {
            "model": run.model,
            "parameters": scenarios[0].parameters,
            "buffers": scenarios[0].buffers,
            "exchange_bytes": scenarios[0].exchange_bytes,
            "plans": [each.to_dict(run.epochs) for each in outcomes],
            "helps": [
                {"change": each.what, "samples_per_s": each.samples_per_s} for each in changes
            ],
        }
        print_result(json_format.dumps(shown, indent=2))
        return
    print_result(_headline(run, lan, scenarios[0]))
    results().print(_table(outcomes, run.epochs))
    if len(outcomes) == 1:
        print_result("")
        results().print(_kinds_table(outcomes[0].kinds))
    print_result("")
    for sentence in _sentences(held_up[0] if held_up else outcomes[-1], changes):
        print_result(sentence)
    print_result("Training alone, without validations and slow data loading.")


def _scenarios(run: PlannedRun, lan: PlannedLan) -> list[Scenario]:
    """Return the scenario to simulate. Raises UsageError."""
    from minga.plan.scenario import Costs, Scenario, count_pcs, parse_counts, parse_pcs

    items, scale = lan.pcs, lan.scale
    if not items:
        items, scale = _GIVEN_NOTHING[0], scale or _GIVEN_NOTHING[1]
    first, *others = parse_pcs(items, lan.pc_link)
    rest = sum(kind.count for kind in others)
    counts = parse_counts(scale) if scale else [first.count]
    for count in counts:
        count_pcs(count + rest)

    from minga.tasks.zoo import sizes  # torch takes seconds to import; report mistakes before

    parameters, buffers = sizes(run.model, run.classes, run.image_size)
    return [
        Scenario(
            pcs=(replace(first, count=count), *others),
            parameters=parameters,
            buffers=buffers,
            train_images=run.train_images,
            batch_size=run.batch_size,
            codec=run.codec,
            in_flight=run.in_flight,
            local_steps=run.local_steps,
            ps_link_mbits=lan.ps_link,
            ps_cores=lan.ps_cores,
            costs=Costs.of(run.codec),
        )
        for count in counts
    ]


def _headline(run: PlannedRun, lan: PlannedLan, scenario: Scenario) -> str:
    return (
        f"{run.model}, {scenario.parameters / 1e6:.3g} M parameters, {run.codec}: "
        f"{scenario.exchange_bytes / 1e6:.3g} MB each way; ps: {lan.ps_link:g} Mbit/s, "
        f"{lan.ps_cores} cores"
    )


def _table(outcomes: Sequence[Outcome], epochs: int) -> Table:
    hours = f"{epochs} EPOCHS" if epochs > 1 else "EPOCH"
    titles = ("PCS", "SAMPLES/S", "IDEAL", "H", "STALENESS", "PS IN/OUT", "PS CPU", "LIMIT", hours)
    table = _bare_table(titles)
    for each in outcomes:
        steps = sorted({kind.local_steps for kind in each.kinds})
        table.add_row(
            str(each.scenario.workers),
            f"{each.samples_per_s:,.0f}",
            f"{each.share:.0%}",
            "-".join(map(str, dict.fromkeys((steps[0], steps[-1])))),
            f"{each.staleness_mean:.1f} / {each.staleness_max}",
            f"{each.load.link_in:.0%} / {each.load.link_out:.0%}",
            f"{max(each.load.cores, each.load.lock):.0%}",
            _limit(each.limit),
            duration(each.seconds(epochs)),
        )
    return table


def _kinds_table(kinds: Sequence[KindOutcome]) -> Table:
    titles = ("PCS", "SAMPLES/S", "IDEAL", "H", "STALENESS", "EXCHANGE", "WAITS", "LIMIT")
    table = _bare_table(titles, left=("PCS", "LIMIT"))
    for kind in kinds:
        table.add_row(
            _item(kind.pcs),
            f"{kind.samples_per_s:,.0f}",
            f"{kind.share:.0%}",
            str(kind.local_steps),
            f"{kind.staleness_mean:.1f} / {kind.staleness_max}",
            f"{kind.exchange_s:.2g} s",
            f"{kind.waiting:.0%}",
            _limit(kind.limit),
        )
    return table


def _bare_table(titles: Sequence[str], left: Sequence[str] = ("LIMIT",)) -> Table:
    table = Table(box=None, pad_edge=False, header_style="heading")
    for title in titles:
        table.add_column(title, justify="left" if title in left else "right", no_wrap=True)
    return table


def _limit(limit: str) -> Text:
    return Text(limit, style="good" if limit == COMPUTE else "warn")


def _item(pcs: Pcs) -> str:
    return f"{pcs.count}x{pcs.images_per_s:g}@{pcs.link_mbits:g}"


def _sentences(outcome: Outcome, changes: Sequence[Change]) -> list[str]:
    """Print the reason for the windows' length, and what would help."""
    said = []
    pcs = outcome.scenario.workers
    if outcome.why and (outcome.network_bound or outcome.limit == COMPUTE):
        said.append(f"{pcs} PCs: {outcome.why}.")
    if changes:
        tried = "; ".join(f"{each.what}: {each.samples_per_s:,.0f} samples/s" for each in changes)
        said.append(f"What would help {pcs} PCs: {tried}.")
    return said
