"""A run: data, folder, log and display, then every stage, on each process of the layout."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import torch
from rich.console import Console

from moesaic.data import DataFolder, build_data
from moesaic.data.folder import MANIFEST
from moesaic.durable import sha256_of
from moesaic.errors import CheckpointError
from moesaic.model.kernels import KernelChoice, choose_kernels
from moesaic.parallel.world import World
from moesaic.recipe import Recipe
from moesaic.train.display import Display
from moesaic.train.machine import Machine
from moesaic.train.memory import keep_freed_memory
from moesaic.train.metrics import MetricsLog
from moesaic.train.observer import Observer
from moesaic.train.progress import check_processes
from moesaic.train.run_folder import RunFolder
from moesaic.train.sinks import open_sink
from moesaic.train.stages import Run
from moesaic.train.start import check_starts
from moesaic.train.stop import StopRequest


def train(
    recipe: Recipe,
    run: Path,
    *,
    data_home: Path | None = None,
    resume: bool = False,
    stage: str | None = None,
    sinks: Sequence[str] = (),
    kernels: KernelChoice = "auto",
    observer: Observer | None = None,
) -> Path | None:
    """Train every stage of `recipe`, or only the one named `stage`, in the run folder `run`.

    Under torchrun every process calls this with the same arguments, as many as the layout needs. Returns the finished
    model folder, or None when SIGTERM or Ctrl-C ended the run early, after a checkpoint. `observer` is told what
    happens. Raises MoesaicError for anything the user can mend; ResizeNeeded when another number of processes must
    go on.
    """
    check_starts(recipe)
    begin = recipe.stages[0] if stage is None else recipe.stage(stage)
    keep_freed_memory()
    world = World.join()
    world.agree("the recipe", recipe.full_hash())
    world.agree("the options", f"run {run}, resume {resume}, stage {stage}, kernels {kernels}")
    if not resume:
        check_processes(recipe, begin, 0, world.size)
    machine = Machine.detect()
    bf16 = any(machine.compute_dtype(s.precision) == torch.bfloat16 for s in recipe.stages)
    rows, why = world.on_each(lambda: choose_kernels(kernels, machine.device, bf16))
    folder = RunFolder(run)
    try:
        world.on_first(lambda: folder.open(recipe, resume))
        with StopRequest() as stop, Display(None if world.is_first else Console(quiet=True)) as display:
            display.message(f"kernels: {why}")
            home = data_home or run.parent / "data"
            built = world.on_first(lambda: build_data(recipe, home, progress=display.message).path)
            data = world.on_each(lambda: DataFolder.open(built))
            world.agree("the data", sha256_of(built / MANIFEST))
            world.agree("versions and kernels", f"torch {torch.__version__}, {why}, bf16 {bf16}")
            tree = recipe.model_dump(mode="json")
            opened = world.on_each(lambda: [open_sink(name, run, tree) for name in sinks if world.is_first])
            with closing(MetricsLog(folder.metrics if world.is_first else None, opened, warn=display.message)) as log:
                watcher = observer or Observer()
                found = Run(recipe, folder, data, log, display, stop, machine, rows, world, watcher).go(resume, stage)
            world.leave()
            return found
    except OSError as error:
        raise CheckpointError(
            f"run folder {run}: {error.filename or 'writing'}: {error.strerror or error}; "
            "free some space or choose another place, then continue with --resume"
        ) from error
