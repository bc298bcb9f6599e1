"""The figures of a profile. Each function writes one PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from l2r2.experiments.figures import new_figure, save_figure
from l2r2_export.profiling import STEPS, Profile, Timing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FG_STEPS, FULL_STEPS = ("render FG", "classify FG"), ("render FULL", "classify FULL")

COLORS = {"decode": "tab:gray", "locate": "tab:green", "FG": "tab:blue", "FULL": "tab:orange", "fuse": "tab:purple"}
"""Of the steps, by what they belong to."""

BETWEEN = "gate"
"""Where the waterfall shows what the gate lets through."""


def waterfall(profile: Profile, path: Path) -> None:
    """The steps of a photograph one after the other, by medians; of FULL's, solid is the share that runs it."""
    figure, axes = new_figure(1, 1, 9, 4.4)
    axis = axes.flat[0]
    share, labels, at = profile.escalated, [], 0.0
    longest = sum(timing.p50_ms for timing in profile.steps.values())
    for row, name in enumerate(_rows(profile.steps)):
        if name == BETWEEN:
            axis.axhline(row, color="grey", linewidth=0.8, linestyle=":")
            text = f"FULL runs for {100 * share:.1f} % of these photographs, gate at {_gate_of(profile)}"
            axis.text(0.02 * longest, row, text, va="center", fontsize=9, color="dimgrey", backgroundcolor="white")
            labels.append("gate")
            continue
        timing, color = profile.steps[name], _color(name)
        full = name in FULL_STEPS
        expected = timing.p50_ms * (share if full else 1.0)
        if full:
            axis.barh(row, timing.p50_ms, left=at, color="none", edgecolor=color, linestyle="--", linewidth=1)
        axis.barh(row, expected, left=at, color=color)
        axis.plot([at, at + timing.p90_ms], [row + 0.46] * 2, color=color, linewidth=1.5, solid_capstyle="butt")
        told = f"{timing.p50_ms:.2g} × {100 * share:.1f} %" if full else f"{timing.p50_ms:.3g}"
        reach = at + max(timing.p50_ms, timing.p90_ms)
        label = {"va": "center", "fontsize": 9, "backgroundcolor": "white", "zorder": 3}
        axis.text(reach + 0.015 * longest, row, told, **label)
        labels.append(name)
        at += expected
    axis.axvline(at, color="black", linewidth=0.8)
    axis.set_yticks(range(len(labels)), labels)
    axis.invert_yaxis()
    axis.set_xlim(0, max(axis.get_xlim()[1], longest) * 1.08)
    axis.set(
        xlabel=f"milliseconds; expected {at:.3g} a photograph (line), {longest:.3g} with FULL always (dashed)",
        title=f"{profile.bundle}, {profile.name}\n{profile.device}: median (bar) and p90 (thin line below it)",
    )
    save_figure(figure, path)


def gate_cost(profile: Profile, path: Path) -> None:
    """Expected cost and share of FULL as functions of the gate; a dot where the bundle's own is."""
    figure, axes = new_figure(1, 1, 6.5, 4.4)
    axis = axes.flat[0]
    thresholds = [point.threshold for point in profile.gate]
    axis.step(
        thresholds, [point.expected_ms for point in profile.gate], where="post", color=COLORS["FG"], label="expected"
    )
    always = sum(timing.p50_ms for timing in profile.steps.values())
    alone = always - sum(profile.steps[name].p50_ms for name in FULL_STEPS if name in profile.steps)
    axis.axhline(always, color=COLORS["FULL"], linewidth=1, linestyle="--", label="FULL always")
    axis.axhline(alone, color="tab:gray", linewidth=1, linestyle=":", label="FULL never")
    for point in profile.gate:
        if point.threshold == profile.threshold:
            axis.plot(point.threshold, point.expected_ms, "o", color=COLORS["FG"], label=f"gate {_gate_of(profile)}")
    full = always - alone
    if full > 0.3 * always:
        axis.set_ylim(0, 1.18 * always)
    elif full > 0:  # FULL is a trifle beside the rest, and would be a flat line
        axis.set_ylim(alone - 0.3 * full, always + 0.3 * full)
    axis.set(
        xlabel="gate: FG answers alone above this confidence",
        ylabel="expected ms a photograph" + (", cut off below" if axis.get_ylim()[0] > 0 else ""),
        title=f"{profile.bundle}, {profile.name}\n{profile.device}",
    )
    if full > 0:
        right = axis.secondary_yaxis(
            "right", functions=(lambda ms: 100 * (ms - alone) / full, lambda share: alone + share * full / 100)
        )
        right.set_yticks((0, 50, 100))
        right.set_ylabel("photographs that run FULL, %")
    axis.legend(loc="best")
    save_figure(figure, path)


def latency_accuracy(profiles: Sequence[Profile], path: Path) -> None:
    """Every profile of a bundle by median latency and change of accuracy, with the front of each device.

    Hollow, at the bottom: deployments that were never compared with the reference. The front joins what no other
    deployment on that device beats in both.
    """
    figure, axes = new_figure(1, 1, 8.5, 5)
    axis = axes.flat[0]
    known = [100 * p.accuracy_change for p in profiles if p.accuracy_change is not None]
    low, high = min([*known, 0.0]), max([*known, 0.0])
    room = max(high - low, 0.2)
    bottom = low - 0.3 * room
    devices = list(dict.fromkeys(profile.device for profile in profiles))
    for number, device in enumerate(devices):
        color = f"C{number}"
        here = sorted((p for p in profiles if p.device == device), key=lambda p: p.cascade.p50_ms)
        front = pareto(here)
        edge = [(p.cascade.p50_ms, 100 * (p.accuracy_change or 0.0)) for p in front]
        axis.step(*zip(*edge, strict=True), where="post", color=color, linewidth=1, alpha=0.7) if edge else None
        axis.plot([], [], "o-", color=color, label=device)
        for place, profile in enumerate(here):
            change = profile.accuracy_change
            x, y = profile.cascade.p50_ms, bottom if change is None else 100 * change
            axis.plot(x, y, "o", color=color, markerfacecolor="none" if change is None else color)
            _label(axis, profile, x, y, above=place % 2 == 0)
    if any(profile.accuracy_change is None for profile in profiles):
        axis.axhline(bottom, color="grey", linewidth=0.8, linestyle=":")
        axis.text(0.01, bottom, "never compared", transform=axis.get_yaxis_transform(), ha="left", va="bottom",
                  fontsize=8, color="dimgrey")  # fmt: skip
    axis.axhline(0, color="grey", linewidth=0.8)
    spread = [profile.cascade.p50_ms for profile in profiles]
    if max(spread) > 5 * min(spread):
        axis.set_xscale("log")
    axis.margins(x=0.12)
    axis.set_ylim(bottom - 0.25 * room, high + 0.3 * room)
    axis.set(
        xlabel="median ms a photograph, through the cascade",
        ylabel="accuracy against the reference, points",
        title=f"{profiles[0].bundle}: latency and accuracy; the line joins what nothing on that device beats",
    )
    axis.legend(loc="lower right" if len(devices) > 1 else "best", fontsize=8)
    save_figure(figure, path)


def pareto(profiles: Sequence[Profile]) -> list[Profile]:
    """Those that no other is at least as fast and as accurate as, and better in one; the fastest first.

    Of equals the first stays. What was never compared is left out.
    """
    front: list[Profile] = []
    compared = [(p.cascade.p50_ms, -p.accuracy_change, p) for p in profiles if p.accuracy_change is not None]
    for _, loss, profile in sorted(compared, key=lambda each: each[:2]):
        if not front or loss < -(front[-1].accuracy_change or 0.0):
            front.append(profile)
    return front


def draw(profile: Profile, others: Sequence[Profile], folder: Path) -> list[Path]:
    """All figures of one profile; the front over it and the others of its bundle.

    Returns:
        The files: waterfall.png, gate.png and front.png.
    """
    paths = {name: folder / f"{name}.png" for name in ("waterfall", "gate", "front")}
    waterfall(profile, paths["waterfall"])
    if profile.gate:
        gate_cost(profile, paths["gate"])
    latency_accuracy([profile, *others], paths["front"])
    return [path for path in paths.values() if path.is_file()]


def _rows(steps: Mapping[str, Timing]) -> list[str]:
    """The steps that were timed, with the gate before FULL's first."""
    rows = [name for name in STEPS if name in steps]
    first = next((row for row, name in enumerate(rows) if name in FULL_STEPS), None)
    return rows if first is None else [*rows[:first], BETWEEN, *rows[first:]]


def _color(step: str) -> str:
    return COLORS.get(step) or COLORS[step.rsplit(maxsplit=1)[-1]]


def _gate_of(profile: Profile) -> str:
    return "?" if profile.threshold is None else f"{profile.threshold:.2f}"


def _label(axis: Axes, profile: Profile, x: float, y: float, *, above: bool) -> None:
    text = f"{profile.runtime}/{profile.precision}/{profile.threads}"
    axis.annotate(
        text, (x, y), (0, 7 if above else -7), textcoords="offset points", ha="center",
        va="bottom" if above else "top", fontsize=8,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
    )  # fmt: skip
