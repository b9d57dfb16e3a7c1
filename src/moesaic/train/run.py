"""A run: stage after stage, each step measured, everything needed to go on in each checkpoint."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from moesaic.data import Carry, DataFolder, Ledger, Loader, build_data
from moesaic.errors import CheckpointError, RecipeError
from moesaic.model import Transformer, initialise, select_trainable
from moesaic.model.kernels import KernelChoice, RowKernels, choose_kernels
from moesaic.recipe import Recipe
from moesaic.train.checkpoint import CheckpointStore
from moesaic.train.display import Display
from moesaic.train.finish import write_model
from moesaic.train.machine import Machine
from moesaic.train.measure import StepMeter, expected
from moesaic.train.memory import keep_freed_memory
from moesaic.train.metrics import MetricsLog
from moesaic.train.optimizer import build_optimizer
from moesaic.train.run_folder import RunFolder
from moesaic.train.schedule import learning_rate
from moesaic.train.sinks import open_sink
from moesaic.train.start import check_starts, load_teacher, start_from
from moesaic.train.step import TrainStep
from moesaic.train.stop import StopRequest
from moesaic.train.watch import Watch


@dataclass
class Progress:
    """Where a run stands. Tokens count inputs without padding and are the clock of every schedule."""

    stage: int = 0
    step: int = 0
    stage_step: int = 0
    stage_tokens: int = 0
    stage_budget: int = 0


def train(
    recipe: Recipe,
    run: Path,
    *,
    data_home: Path | None = None,
    resume: bool = False,
    stage: str | None = None,
    sinks: Sequence[str] = (),
    kernels: KernelChoice = "auto",
) -> Path | None:
    """Train every stage of `recipe`, or only the one named `stage`, in the run folder `run`.

    Returns the finished model folder, or None when SIGTERM or Ctrl-C ended the run early, after a checkpoint.
    Raises MoesaicError for anything the user can mend.
    """
    if recipe.layout.world > 1:
        raise RecipeError(
            f"the layout of {recipe.name!r} needs {recipe.layout.world} processes and training runs in one so far; "
            "set pp, dp, cp, tp and ep of layout to 1"
        )
    check_starts(recipe)
    keep_freed_memory()
    machine = Machine.detect()
    bf16 = any(machine.compute_dtype(s.precision) == torch.bfloat16 for s in recipe.stages)
    rows, why = choose_kernels(kernels, machine.device, bf16)
    folder = RunFolder(run)
    try:
        folder.open(recipe, resume)
        with StopRequest() as stop, Display() as display:
            display.message(f"kernels: {why}")
            data = build_data(recipe, data_home or run.parent / "data", progress=display.message)
            opened = [open_sink(name, run, recipe.model_dump(mode="json")) for name in sinks]
            with closing(MetricsLog(folder.metrics, opened, warn=display.message)) as log:
                return Run(recipe, folder, data, log, display, stop, machine, rows).go(resume, stage)
    except OSError as error:
        raise CheckpointError(
            f"run folder {run}: {error.filename or 'writing'}: {error.strerror or error}; "
            "free some space or choose another place, then continue with --resume"
        ) from error


class Run:
    """State of one run in this process."""

    def __init__(
        self,
        recipe: Recipe,
        folder: RunFolder,
        data: DataFolder,
        log: MetricsLog,
        display: Display,
        stop: StopRequest,
        machine: Machine,
        kernels: RowKernels,
    ) -> None:
        self.recipe, self.folder, self.data, self.log = recipe, folder, data, log
        self.display, self.stop, self.machine = display, stop, machine
        checkpoints = recipe.checkpoints
        self.store = CheckpointStore(folder.checkpoints, checkpoints.keep, checkpoints.retries, warn=display.message)
        self.ledger = Ledger({name: shard.input_tokens for name, shard in data.train.items()})
        self.progress = Progress()
        self.carry = Carry()  # where each source goes on in the next stage
        with self.machine.device:
            self.model = Transformer(recipe.model)
        self.model.use_kernels(kernels)

    def go(self, resume: bool, only: str | None) -> Path | None:
        """Run the stages that remain, or the one named `only`."""
        checkpoint = self.store.newest_good() if resume else None
        if checkpoint is None:
            if resume and self.store.any_committed():
                raise CheckpointError(
                    f"every checkpoint in {self.folder.checkpoints} is damaged or of another version; "
                    "restore one from a copy, or begin anew under another name with --run"
                )
            initialise(self.model, self.recipe.seed)
        else:
            self._restore_counts(self.store.extra(checkpoint))
        self.log.truncate_after(self.progress.step)
        if checkpoint is not None:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            self.log.write({"event": "resume", "at_step": self.progress.step, "time_iso": now})
        last = len(self.recipe.stages) - 1
        if only is not None:
            last = self._jump_to(only)
        if not self.folder.forecast.exists():
            self.display.message("measuring the rate of each stage")
            self.folder.write_json(self.folder.forecast, expected(self.recipe, self.data, self.machine, self.model))
        while self.progress.stage <= last:
            if not self._run_stage(checkpoint):
                return None
            checkpoint = None
        if checkpoint is not None:  # everything was trained already: only the model folder is written again
            self.store.load(checkpoint, {"model": self.model.state_dict()})
        return write_model(self.folder, self.recipe, self.model, self.data, self.ledger)

    def _jump_to(self, only: str) -> int:
        """Index of the stage to run alone, checked against what was trained before it."""
        index = [s.name for s in self.recipe.stages].index(self.recipe.stage(only).name)
        if index > self.progress.stage:
            if self.recipe.stages[index].init is None:
                missing = self.recipe.stages[self.progress.stage].name
                raise RecipeError(
                    f"stage {only!r} follows {missing!r}, which this run has not finished; "
                    f"train that first, or start {only!r} from a model folder with --init"
                )
            self.progress = Progress(stage=index, step=self.progress.step)
        return index

    def _run_stage(self, checkpoint: Path | None) -> bool:
        """Train one stage to its end; False when a stop was requested before."""
        progress, recipe = self.progress, self.recipe
        stage = recipe.stages[progress.stage]
        fresh = progress.stage_step == 0
        if stage.init is not None and fresh:
            start_from(self.model, stage)
        elif checkpoint is not None and fresh:
            self.store.load(checkpoint, {"model": self.model.state_dict()})
        self.model.compute_dtype = self.machine.compute_dtype(stage.precision)
        select_trainable(self.model, stage.trainable)
        watch = Watch(self.data, self.model, self.log)
        longer = stage.seq_len > max([recipe.model.context, *(s.seq_len for s in recipe.stages[: progress.stage])])
        if fresh and longer:
            with self.display.doing("measuring loss by position before the context grows"):
                watch.curve(stage, progress.step + 1, before=True)
        self.model.extend(stage.seq_len, stage.rope_theta)
        optimizer = build_optimizer(self.model, stage.optimizer)
        teacher = None if stage.teacher is None else load_teacher(self.model, stage)
        step = TrainStep(self.model, stage, optimizer, teacher)
        loader = Loader(self.data, stage, recipe, recipe.seed, carry=self.carry)
        if checkpoint is not None and not fresh:
            self._restore_stage(checkpoint, optimizer, step, loader)
        else:
            progress.stage_budget = min(stage.tokens, loader.available_tokens)
            if progress.stage_budget < stage.tokens:
                self.display.message(
                    f"stage {stage.name}: its sources hold {progress.stage_budget:,} tokens at their declared "
                    f"epochs, {stage.tokens:,} were asked for; it ends there"
                )
        meter = StepMeter(recipe, stage, self.machine.peak(self.model.compute_dtype))
        self.display.start_stage(stage.name, progress.stage_budget, progress.stage_tokens)
        saved = True
        while progress.stage_tokens < progress.stage_budget:
            if self.stop.requested:
                if saved or self._save(optimizer, step, loader):
                    self.display.message(f"stopped after step {progress.step} as asked; continue with --resume")
                return False
            meter.start()
            batch = loader.next_batch(stage.batch_tokens(progress.stage_tokens) // stage.seq_len)
            if batch is None:
                break
            meter.loaded()
            clock = progress.stage_tokens + batch.input_tokens
            lr = learning_rate(stage.optimizer, clock, progress.stage_budget)
            result = step(batch.to(self.machine.device), lr)
            self.ledger.add(batch)
            progress.step, progress.stage_step = progress.step + 1, progress.stage_step + 1
            progress.stage_tokens = clock
            line = meter.line(batch, result, step=progress.step, tokens=self.ledger.total, lr=lr)
            self.log.write(line)
            self.display.step({**line, "stage_tokens": clock})
            saved = False
            # Not at the very end: what is written there also carries this step's number, and would be kept twice.
            if progress.step % recipe.checkpoints.every_steps == 0 and clock < progress.stage_budget:
                saved = self._save(optimizer, step, loader)
        del optimizer
        with self.display.doing("evaluating on held-out documents"):
            watch.bits(stage, progress.step)
            if longer:
                watch.curve(stage, progress.step, before=False)
            watch.sample(stage, progress.step)
        self.carry = loader.carry()
        self.progress = Progress(stage=progress.stage + 1, step=progress.step)
        self._save(None, None, None)
        return True

    def _save(self, optimizer: Any, step: TrainStep | None, loader: Loader | None) -> bool:
        """Write a checkpoint: inside a stage with everything, between stages the weights alone, and pinned.

        False, after warnings, when that failed.
        """
        state: dict[str, Any] = {"model": self.model.state_dict()}
        extra: dict[str, Any] = {
            "progress": asdict(self.progress),
            "carry": self.carry.plain(),
            "ledger": self.ledger.state_dict(),
            "system_hash": self.recipe.system_hash(),
            "full_hash": self.recipe.full_hash(),
            "rope_theta": self.model.config.rope_theta,
            "context": self.model.config.context,
            "arithmetic": self._arithmetic,
        }
        if optimizer is not None and step is not None and loader is not None:
            state["optimizer"] = get_state_dict(self.model, optimizer)[1]["state"]
            extra |= {"train_step": step.state_dict(), "loader": loader.state_dict()}
        saved = self.store.save(self.progress.step, state, extra, pin=optimizer is None, background=False)
        try:
            self.folder.write_ledger(self.ledger, self.recipe)
        except OSError as error:  # it is in the checkpoint too: no reason to end the run
            self.display.message(f"{self.folder.ledger} was not written: {error.strerror}; the next save tries again")
        return saved

    @property
    def _arithmetic(self) -> str:
        """What, besides recipe and data, decides the last bits of a result."""
        return f"{self.machine.threads} threads and {self.model.kernels.name} kernels"

    def _restore_counts(self, extra: dict[str, Any]) -> None:
        """Take over everything but tensors. Raises CheckpointError when the data is not what was trained on."""
        before, now = extra["ledger"]["epoch_tokens"], self.ledger.epoch_tokens
        if changed := [name for name, tokens in now.items() if before.get(name) != tokens]:
            raise CheckpointError(
                f"the data changed since this run began: {changed[0]} holds {now[changed[0]]:,} tokens now, "
                f"{before.get(changed[0], 0):,} then; restore it, or start another run from a model folder with --init"
            )
        self.progress = Progress(**extra["progress"])
        self.carry = Carry.of(extra["carry"])
        self.ledger.load_state_dict(extra["ledger"])
        self.model.extend(extra["context"], extra["rope_theta"])
        if extra["arithmetic"] != self._arithmetic:
            self.display.message(
                f"resumed with {self._arithmetic}, saved with {extra['arithmetic']}: sums may differ in the last bits"
            )

    def _restore_stage(self, checkpoint: Path, optimizer: Any, step: TrainStep, loader: Loader) -> None:
        """Continue inside a stage, bit for bit."""
        model_state, optimizer_state = get_state_dict(self.model, optimizer)
        extra = self.store.load(checkpoint, {"model": model_state, "optimizer": optimizer_state["state"]})
        set_state_dict(self.model, optimizer, model_state_dict=model_state, optim_state_dict=optimizer_state)
        step.load_state_dict(extra["train_step"])
        loader.load_state_dict(extra["loader"])
