"""The part of a sheet that says whether a budget is spent well; `moesaic plan train` appends it to its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from moesaic.errors import PlanError
from moesaic.plan.optimality import (
    FITTED_EXPERTS,
    FITTED_PARAMETERS,
    HOFFMANN,
    RATIO,
    REFIT,
    REPEAT,
    SBASE,
    Repeated,
    best_by_ratio,
    effective_tokens,
    readings,
    serving_by_experts,
    with_experts,
)
from moesaic.plan.quantity import human
from moesaic.plan.routing import touched
from moesaic.plan.shape import Shape
from moesaic.plan.sheet import Chart, Sheet, Value

if TYPE_CHECKING:
    from moesaic.recipe import Recipe


EXPERTS = (8, 16, 64, 128)
"""Numbers of experts that are compared with the model's own."""

EPOCHS = (1, 2, 4, 8, 16)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


def optimality_sheet(
    shape: Shape, tokens: float, flop: float | None = None, sources: Mapping[str, Repeated] | None = None
) -> Sheet:
    """A sheet of `add_optimality` alone. Raises PlanError."""
    sheet = Sheet(f"{shape.name} on {human(tokens)} tokens: is the budget spent well?")
    add_optimality(sheet, shape, tokens, flop, sources)
    return sheet


def add_optimality(
    sheet: Sheet,
    shape: Shape,
    tokens: float,
    flop: float | None = None,
    sources: Mapping[str, Repeated] | None = None,
) -> None:
    """Append what the laws say of `tokens` (repetitions counted) and `flop` (6 x active x tokens when None).

    `sources` are the different tokens and epochs of each source; without them all tokens are taken as new.
    Raises PlanError.
    """
    budget = 6.0 * shape.active_parameters * tokens if flop is None else flop
    _chinchilla(sheet, shape, tokens, budget)
    _epochs(sheet, shape, tokens)
    if sources:
        _repetition(sheet, shape, tokens, sources)
    if shape.n_experts > 1:
        _experts(sheet, shape, tokens)


def sources_of(recipe: Recipe, stage: str | None = None) -> dict[str, Repeated]:
    """The sources of a stage (the first when None) by its tokens and weights, each seen for all its declared epochs.

    Empty when several sources have no weights: they mix by their sizes, which a recipe does not know.
    Raises PlanError for a stage that the recipe lacks.
    """
    found = next((s for s in recipe.stages if stage in (None, s.name)), None)
    if found is None:
        raise PlanError(f"no stage '{stage}'; there are: {', '.join(s.name for s in recipe.stages)}")
    if found.weights is None and len(found.sources) > 1:
        return {}
    weights = found.weights or {found.sources[0]: 1.0}
    epochs = {s.name: float(s.epochs) for s in recipe.data.sources}
    whole = sum(weights.values())
    return {n: Repeated(found.tokens * w / whole / epochs[n], epochs[n]) for n, w in weights.items()}


def _chinchilla(sheet: Sheet, shape: Shape, tokens: float, flop: float) -> None:
    section = "Compute-optimal"
    sheet.add(section, "budget_flop", "training compute", flop, "FLOP", "6 x active parameters x tokens, or as given")
    best = {
        "20_to_1": (
            "20 tokens per parameter",
            best_by_ratio(flop),
            "N = sqrt(C / 120), D = 20 N; Hoffmann et al. 2022",
        ),
        "refit": ("the refit", REFIT.best(flop), f"N = G (C/6)^(beta/(alpha+beta)), D = C/6N; {REFIT.source}"),
        "approach_3": ("approach 3", HOFFMANN.best(flop), f"the same with the first fit; {HOFFMANN.source}"),
    }
    for key, (label, (size, data), formula) in best.items():
        sheet.add(section, f"dense_{key}_parameters", f"dense model by {label}", float(size), "", formula, c=flop)
        sheet.add(section, f"dense_{key}_tokens", "  its tokens", float(data), "tokens", formula, c=flop)
    rows: list[Mapping[str, Value]] = []
    for name, size in readings(shape).items():
        rows.append(
            {
                "parameters_read_as": name,
                "parameters": size,
                "tokens_per_parameter": tokens / size,
                "optimal_tokens": RATIO * size,
                "tokens_over_optimal_ratio": tokens / (RATIO * size),
                "loss_refit_nats": float(REFIT.loss(size, tokens)),
                "loss_approach_3_nats": float(HOFFMANN.loss(size, tokens)),
            }
        )
    sheet.table("chinchilla_readings", "Tokens by what counts as parameters; optimal: 20 a parameter", rows)
    if shape.n_experts > 1:
        sheet.note(
            "Chinchilla's laws are fits to dense models. Active parameters are the least, total the most that a "
            "mixture can count for; losses are of those papers' data and only compare with each other."
        )


def _epochs(sheet: Sheet, shape: Shape, tokens: float) -> None:
    size = readings(shape)["active"]
    rows: list[Mapping[str, Value]] = []
    for epochs in EPOCHS:
        worth = float(effective_tokens(tokens / epochs, epochs))
        rows.append(
            {
                "epochs": epochs,
                "unique_tokens": tokens / epochs,
                "effective_tokens": worth,
                "effective_share": worth / tokens,
                "loss_of_repeating_nats": float(REFIT.loss(size, worth)) - float(REFIT.loss(size, tokens)),
            }
        )
    sheet.table("epochs", f"All {human(tokens)} tokens as so many epochs (loss: the refit at active parameters)", rows)


def _repetition(sheet: Sheet, shape: Shape, tokens: float, sources: Mapping[str, Repeated]) -> None:
    section = "Repeated data"
    unique = sum(s.unique for s in sources.values())
    seen = sum(s.seen for s in sources.values())
    worth = sum(float(effective_tokens(s.unique, s.epochs)) for s in sources.values())
    formula = "U + U R* (1 - exp(-(epochs - 1) / R*)), summed over sources; Muennighoff et al. 2023, arXiv:2305.16264"
    sheet.add(section, "unique_tokens", "different tokens", unique, "tokens", "summed over sources")
    sheet.add(section, "seen_tokens", "tokens counting epochs", seen, "tokens", "different tokens x epochs, summed")
    sheet.add(section, "effective_tokens", "new tokens worth as much", worth, "tokens", formula, r_star=REPEAT)
    sheet.add(section, "effective_share", "what a token seen is worth", worth / seen, "share", "effective / seen")
    size = readings(shape)["active"]
    cost = float(REFIT.loss(size, worth)) - float(REFIT.loss(size, seen))
    sheet.add(
        section,
        "repetition_loss_nats",
        "loss that repetition costs, at active parameters",
        cost,
        "nats",
        "L(active, effective) - L(active, seen), the refit",
        active=human(size),
    )
    sheet.table(
        "repetition",
        "What epochs are worth",
        [
            {
                "source": name,
                "unique_tokens": s.unique,
                "epochs": s.epochs,
                "seen_tokens": s.seen,
                "effective_tokens": float(effective_tokens(s.unique, s.epochs)),
                "effective_share": float(effective_tokens(s.unique, s.epochs)) / s.seen,
            }
            for name, s in sources.items()
        ],
    )
    if abs(seen / tokens - 1) > 0.01:
        sheet.note(f"The sources make {human(seen)} tokens counting epochs, the run asks for {human(tokens)}.")


def _experts(sheet: Sheet, shape: Shape, tokens: float) -> None:
    size = float(shape.active_parameters)
    numbers = tuple(n for n in sorted({*EXPERTS, shape.n_experts}) if n >= shape.top_k)
    rows: list[Mapping[str, Value]] = []
    for many in numbers:
        share = many / shape.top_k
        rows.append(
            {
                "experts": many,
                "total_parameters": with_experts(shape, many).total_parameters,
                "experts_per_active_expert": share,
                "compute_gain_where_fitted_ratio": float(SBASE.dense_equivalent(FITTED_PARAMETERS, share))
                / FITTED_PARAMETERS,
                "compute_gain_here_ratio": float(SBASE.dense_equivalent(size, share)) / size,
                "dense_equivalent_parameters": float(SBASE.dense_equivalent(size, share)),
            }
        )
    sheet.table(
        "experts_by_law",
        f"More experts of the same width, {shape.top_k} for each token: what a law says they gain",
        rows,
    )
    sheet.table(
        "experts_in_serving",
        "What they cost a decode step (16-bit weights, even routing)",
        serving_by_experts(shape, numbers),
    )
    sheet.chart(
        Chart(
            key="touched_by_batch",
            title="Experts of a layer that a decode step reads",
            kind="lines",
            x="tokens in the step",
            y="share of the experts touched",
            series={
                f"{many} experts": [(float(b), float(touched(many, shape.top_k, b)) / many) for b in BATCHES]
                for many in numbers
            },
        )
    )
    sheet.note(
        f"The law is {SBASE.source}; k experts of a token are read as one, so E is experts / k. It was fitted on dense "
        f"models up to {human(FITTED_PARAMETERS)} with up to {FITTED_EXPERTS} experts after 130B tokens, and says that "
        f"experts cease to help near {human(SBASE.cutoff)} (the paper: 937B). With more tokens they help more: "
        f"Krajewski et al. 2024 (arXiv:2402.07871) find the gain growing with the budget. At {human(size)} active "
        f"parameters and {human(tokens)} tokens the last columns are an extrapolation, and by that finding too low."
    )
