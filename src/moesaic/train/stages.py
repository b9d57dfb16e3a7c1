"""The stages of a run, one after the other: steps, looks at the model, checkpoints, and going on from one.

Every process of the layout runs this; the first one keeps the books.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import torch

from moesaic.data import Carry, DataFolder, Ledger, Loader
from moesaic.errors import CheckpointError, RecipeError
from moesaic.model.kernels import RowKernels
from moesaic.parallel.engine import Engine
from moesaic.parallel.world import World
from moesaic.recipe import Layout, Recipe, Stage
from moesaic.train.display import Display
from moesaic.train.finish import write_model
from moesaic.train.machine import Machine
from moesaic.train.measure import StepMeter, expected
from moesaic.train.metrics import MetricsLog
from moesaic.train.observer import Observer
from moesaic.train.optimizer import build_optimizer
from moesaic.train.progress import Progress, ResizeNeeded, check_processes, layout_for
from moesaic.train.run_folder import RunFolder
from moesaic.train.saves import Saves
from moesaic.train.schedule import learning_rate
from moesaic.train.start import load_teacher, start_from
from moesaic.train.state import after_loading, check_data, check_system, tensors_of, values_of
from moesaic.train.step import TrainStep
from moesaic.train.stop import StopRequest
from moesaic.train.watch import Watch


def _go_on(layout: Layout) -> str:
    return f": start {layout.world} with --resume"


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
        world: World,
        observer: Observer,
    ) -> None:
        self.recipe, self.folder, self.data, self.log = recipe, folder, data, log
        self.display, self.stop, self.machine, self.kernels = display, stop, machine, kernels
        self.world, self.observer = world, observer
        self.saves = Saves(folder.checkpoints, recipe.checkpoints, world, log, display.message, observer)
        self.store = self.saves.store
        self.ledger = Ledger({name: shard.input_tokens for name, shard in data.train.items()})
        self.progress = Progress()
        self.carry = Carry()  # where each source goes on in the next stage
        self.context: tuple[int, float] | None = None  # to which an earlier stage extended the model

    def go(self, resume: bool, only: str | None) -> Path | None:
        """Run the stages that remain, or the one named `only`."""
        checkpoint = self.store.newest_good() if resume else None
        if checkpoint is None:
            if resume and self.store.any_committed():
                raise CheckpointError(
                    f"every checkpoint in {self.folder.checkpoints} is damaged or of another version; "
                    "restore one from a copy, or begin anew under another name with --run"
                )
        else:
            self._restore_counts(self.store.extra(checkpoint))
        last = len(self.recipe.stages) - 1
        if only is not None:
            last = self._jump_to(only)
        self.engine = self._build(min(self.progress.stage, last))
        if checkpoint is None:
            self.engine.initialise(self.recipe.seed)
        evaluating = 0 < self.progress.stage_budget <= self.progress.stage_tokens  # a stage trained, not yet left
        lost = self.log.truncate_after(self.progress.step, looks=not evaluating)
        if checkpoint is not None or lost["lost_steps"]:
            self.log.write({"event": "resume", "stage": self._stage_name, "at_step": self.progress.step, **lost})
        if not self.world.on_first(self.folder.forecast.exists):
            self.display.message("measuring the rate of each stage")
            forecast = expected(self.recipe, self.data, self.machine, self.engine)
            self.world.on_first(lambda: self.folder.write_json(self.folder.forecast, forecast))
        try:
            while self.progress.stage <= last:
                if not self._run_stage(checkpoint):
                    return None
                checkpoint = None
        finally:
            self.saves.finish(self._stage_name)
        if checkpoint is not None:  # everything was trained already: only the model folder is written again
            self.store.load(checkpoint, tensors_of(self.engine))
            after_loading(self.engine)
        whole = self.engine.whole()
        if whole is not None:
            write_model(self.folder, self.recipe, whole, self.data, self.ledger)
        self.world.barrier()
        return self.folder.model

    def _build(self, stage: int) -> Engine:
        """The model in the layout of what comes next. Raises ResizeNeeded when that needs other processes."""
        now = self.recipe.stages[stage]
        layout = check_processes(self.recipe, now, self.progress.stage_tokens, self.world.size)
        # Experts are gathered in one type, which must do for every stage.
        dtypes = [self.machine.compute_dtype(s.precision) for s in self.recipe.stages]
        widest = max(dtypes, key=lambda dtype: dtype.itemsize)
        engine = Engine(self.recipe.model, layout, self.world, self.kernels, widest)
        if self.context is not None:
            engine.extend(*self.context)
        return engine

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
        progress, recipe, engine = self.progress, self.recipe, self.engine
        stage = recipe.stages[progress.stage]
        fresh = progress.stage_step == 0
        if stage.init is not None and fresh:
            start_from(engine, stage)
        elif checkpoint is not None and fresh:
            self.store.load(checkpoint, tensors_of(engine))
            after_loading(engine)
        engine.set_compute_dtype(self.machine.compute_dtype(stage.precision))
        engine.freeze(stage.trainable)
        longer = stage.seq_len > max([recipe.model.context, *(s.seq_len for s in recipe.stages[: progress.stage])])
        if fresh and longer:
            with self.display.doing("measuring loss by position before the context grows"):
                self._look(stage, progress.step + 1, before=True)
        engine.extend(stage.seq_len, stage.rope_theta)
        optimizer = build_optimizer(engine.named_parameters(), stage.optimizer)
        teacher = None if stage.teacher is None else load_teacher(engine, stage)
        step = TrainStep(engine, stage, optimizer, teacher, self.observer, self.store.wait_copied)
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
        self.observer.stage_ready(stage, engine.parts, optimizer)
        self.display.start_stage(stage.name, progress.stage_budget, progress.stage_tokens)
        if not self._steps(stage, step, loader, optimizer):
            return False
        if self.world.size > 1:  # the first process now gathers the whole model: should it fail, the stage is not lost
            self._save(optimizer, step, loader)
        del optimizer
        self._look(stage, progress.step, longer=longer)
        self.carry = loader.carry()
        self.context = (engine.config.context, engine.config.rope_theta)
        self.progress = Progress(stage=progress.stage + 1, step=progress.step)
        saved = self._save(None, None, None)
        if progress.stage + 1 < len(recipe.stages):
            self._resize_between(recipe.stages[progress.stage + 1], saved)
        return True

    def _steps(self, stage: Stage, step: TrainStep, loader: Loader, optimizer: torch.optim.Optimizer) -> bool:
        """The steps of a stage that remain; False when a stop was requested."""
        progress, engine, layout = self.progress, self.engine, self.engine.layout
        meter = StepMeter(self.recipe, stage, self.machine.peak(engine.compute_dtype) * layout.world)
        saved = True
        while progress.stage_tokens < progress.stage_budget:
            wanted = layout_for(self.recipe, stage, progress.stage_tokens)
            stopping, due = self.world.any(self.stop.requested, self.saves.clock.due(progress.step))
            if stopping or wanted != layout:
                # A save of this step that goes on behind training may yet have failed.
                saved = (self.store.wait() and saved) or self._save(optimizer, step, loader, background=False)
                self._tell_stop(stage, stopping, saved)
            if stopping:
                return False
            if wanted != layout:
                self._resize(
                    wanted, f"batches of {stage.batch_tokens(progress.stage_tokens):,} tokens begin, on", saved
                )
            if due and not saved:
                saved = self._save(optimizer, step, loader)
            self.observer.step_begins(progress.step + 1)
            meter.start()
            sequences = stage.batch_tokens(progress.stage_tokens) // stage.seq_len
            batch = loader.next_batch(sequences, (engine.meshes.place.dp, layout.dp))
            if batch is None:
                break
            meter.loaded()
            clock = progress.stage_tokens + batch.input_tokens
            lr = learning_rate(stage.optimizer, clock, progress.stage_budget)
            result = step(batch.to(self.machine.device), lr, progress.step + 1)
            self.ledger.add(batch)
            progress.step, progress.stage_step = progress.step + 1, progress.stage_step + 1
            progress.stage_tokens = clock
            line = meter.line(batch, result, step=progress.step, tokens=self.ledger.total, lr=lr)
            self.log.write(line)
            self.display.step({**line, "stage_tokens": clock})
            self.saves.clock.stepped(line["seconds"])
            self.saves.report(self._stage_name)
            saved = False
            self.observer.step_ends(line)
            # Not at the very end: what is written there also carries this step's number, and would be kept twice.
            if progress.step % self.recipe.checkpoints.every_steps == 0 and clock < progress.stage_budget:
                saved = self._save(optimizer, step, loader)
        return True

    def _look(self, stage: Stage, step: int, *, before: bool = False, longer: bool = False) -> None:
        """Evaluate the whole model on the first rank; the others wait."""
        with self.display.doing("evaluating on held-out documents"):
            whole = self.engine.whole()
            if whole is not None:
                watch = Watch(self.data, whole, self.log)
                if not before:
                    watch.bits(stage, step)
                if before or longer:
                    watch.curve(stage, step, before=before)
                if not before:
                    watch.sample(stage, step)
            self.world.barrier()

    def _tell_stop(self, stage: Stage, asked: bool, saved: bool) -> None:
        """The run ends here for now, because somebody asked or to be resized."""
        step, now = self.progress.step, datetime.now(UTC).isoformat(timespec="milliseconds")
        self.log.write({"event": "stop", "stage": stage.name, "at_step": step, "time_iso": now})
        if asked:
            rest = "continue with --resume" if saved else "--resume goes on from the checkpoint before"
            self.display.message(f"stopped after step {step} as asked{'' if saved else ', which is not saved'}; {rest}")

    def _resize(self, wanted: Layout, why: str, saved: bool) -> NoReturn:
        """Raises ResizeNeeded; without a checkpoint to go on from, CheckpointError, or this would go on for ever."""
        if not saved:
            raise CheckpointError(
                f"{why} {wanted.world} processes, but step {self.progress.step} could not be saved in "
                f"{self.folder.checkpoints}; make room there, then continue with --resume"
            )
        raise ResizeNeeded(wanted, why, _go_on(wanted))

    def _resize_between(self, following: Stage, saved: bool) -> None:
        """Raises ResizeNeeded when the next stage begins with another number of processes."""
        wanted = layout_for(self.recipe, following, 0)
        if wanted != self.engine.layout:
            self._resize(wanted, f"stage {following.name} begins, on", saved)

    def _save(self, optimizer: Any, step: TrainStep | None, loader: Loader | None, background: bool = True) -> bool:
        """Write a checkpoint: inside a stage with everything, between stages the weights alone, and pinned.

        False, after warnings, when that failed.
        """
        values = values_of(
            self.recipe, self.engine, self.progress, self.carry, self.ledger, self._arithmetic, step, loader
        )
        state, between = tensors_of(self.engine, optimizer), optimizer is None
        saved = self.saves.save(
            self.progress.step, self._stage_name, state, values, pin=between, now=between or not background
        )
        try:
            self.world.on_first(lambda: self.folder.write_ledger(self.ledger, self.recipe))
        except OSError as error:  # it is in the checkpoint too: no reason to end the run
            self.display.message(f"{self.folder.ledger} was not written: {error.strerror}; the next save tries again")
        return saved

    @property
    def _stage_name(self) -> str:
        return self.recipe.stages[min(self.progress.stage, len(self.recipe.stages) - 1)].name

    @property
    def _arithmetic(self) -> str:
        """What, besides recipe and data, decides the last bits of a result."""
        layout = ", ".join(f"{k} {v}" for k, v in self.engine.layout.model_dump(exclude_defaults=True).items())
        return f"{self.machine.threads} threads, {self.kernels.name} kernels and layout {layout or 'of one process'}"

    def _restore_counts(self, extra: dict[str, Any]) -> None:
        """Take over everything but tensors. Raises CheckpointError when they are of another run."""
        check_system(extra["system_hash"], self.recipe)
        check_data(extra["ledger"]["epoch_tokens"], self.ledger.epoch_tokens)
        self.progress = Progress(**extra["progress"])
        self.carry = Carry.of(extra["carry"])
        self.ledger.load_state_dict(extra["ledger"])
        self.context = (extra["context"], extra["rope_theta"])
        self.saves.clock.saved(self.progress.step)

    def _restore_stage(self, checkpoint: Path, optimizer: Any, step: TrainStep, loader: Loader) -> None:
        """Continue inside a stage: in the same layout bit for bit, in another one up to the order of sums."""
        extra = self.store.load(checkpoint, tensors_of(self.engine, optimizer))
        after_loading(self.engine, optimizer)
        step.load_state_dict(extra["train_step"])
        loader.load_state_dict(extra["loader"])
        if extra["arithmetic"] != self._arithmetic:
            self.display.message(
                f"resumed with {self._arithmetic}, saved with {extra['arithmetic']}: sums may differ in the last bits"
            )
