"""The search from Python: it takes what the command line takes and gives a sheet."""

from collections.abc import Sequence
from pathlib import Path

from moesaic.errors import PlanError
from moesaic.plan.job import Job
from moesaic.plan.mixed import parse_cluster
from moesaic.plan.prices import no_rent, rent
from moesaic.plan.prices import prices as read_prices
from moesaic.plan.quantity import parse_context, parse_count
from moesaic.plan.search import Objective
from moesaic.plan.search_sheet import Question, search_sheet
from moesaic.plan.shape import Shape
from moesaic.plan.shapes import read_source
from moesaic.plan.sheet import Sheet
from moesaic.plan.space import Space
from moesaic.plan.stack import stack as read_stack
from moesaic.plan.workload import GRADIENT_BYTES, micro_batches, workload


def search_plan(
    source: str,
    hardware: str,
    gpus: str | int | None = None,
    *,
    objective: Objective = "days",
    seq_len: str | int | None = None,
    tokens: str | float | None = None,
    batch: str | float | None = None,
    top: int = 10,
    max_tp: int | None = None,
    max_cp: int | None = None,
    idle: float | None = None,
    gradients: str = "fp32",
    precision: str = "bf16",
    imbalance: float = 1.0,
    why_no_fsdp: bool = False,
    stack: str = "megatron-core",
    stacks: Path | None = None,
    price: float | None = None,
    prices: Path | None = None,
    values: Sequence[str] = (),
) -> Sheet:
    """The best layouts of a cluster. `hardware` is a device with `gpus`, or `a100-80:16384,h100:8192`.

        search_plan("gpt4", "a100-80", 24960, tokens="13T", batch="60M")["days"]

    Raises PlanError.
    """
    cluster = parse_cluster(hardware, None if gpus is None else str(gpus))
    shape, job, budget = read_workload(source, tokens, batch, seq_len, precision, gradients, imbalance, values)
    space = Space(max_tp=max_tp, max_cp=max_cp, idle=idle, micro_batches=micro_batches(job.seq_len))
    using = read_stack(stack, stacks)
    table = read_prices(prices)
    quoted = [rent(group.device, price, table) for group in cluster.groups]
    rents = [found.amount if found else None for found in quoted]
    for group in cluster.groups:
        group.device.must_train(precision)
    if len(cluster.groups) > 1:
        from moesaic.plan.mixed_sheet import mixed_sheet

        if why_no_fsdp:
            raise PlanError("--why-no-fsdp speaks of one generation of devices; give --hardware DEVICE --gpus N")
        if objective != "days":
            raise PlanError(
                f"--objective {objective}: mixed clusters are placed for the fewest days only; leave it out"
            )
        sheet = mixed_sheet(shape, job, using, cluster.groups, budget, rents, space)
        for group, found in zip(cluster.groups, quoted, strict=True):
            if found is None:
                sheet.note(no_rent(group.device))
        return sheet
    device = cluster.groups[0].device
    ask = Question(shape, job, device, using, cluster.counts, budget, objective, top, rents[0], space)
    sheet, best = search_sheet(ask)
    if quoted[0] is None:
        sheet.note(no_rent(device))
    if why_no_fsdp:
        from moesaic.plan.fsdp import add_why_no_fsdp

        add_why_no_fsdp(sheet, best.estimate)
    return sheet


def read_workload(
    source: str,
    tokens: str | float | None = None,
    batch: str | float | None = None,
    seq_len: str | int | None = None,
    precision: str = "bf16",
    gradients: str = "fp32",
    imbalance: float = 1.0,
    values: Sequence[str] = (),
) -> tuple[Shape, Job, float]:
    """Shape, job and tokens of a recipe's first stage, a shape's name or a config.json; what is given counts first.

    Without a recipe as `workload` says. Raises PlanError.
    """
    shape, recipe = read_source(source, values)
    work = workload(
        shape,
        recipe,
        parse_context(str(seq_len), "--seq-len") if seq_len else None,
        parse_count(str(tokens), "--tokens") if tokens else None,
        parse_count(str(batch), "--batch") if batch else None,
    )
    job = Job(work.seq_len, work.batch, precision, GRADIENT_BYTES[gradients], imbalance=imbalance)
    return shape, job, work.tokens
