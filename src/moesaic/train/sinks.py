"""Where metrics go besides `metrics.jsonl`: TensorBoard, Weights & Biases, trackio; optional extras."""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from moesaic.errors import MoesaicError


class Sink(Protocol):
    """Takes the lines of a run as they are written."""

    def log(self, line: Mapping[str, Any]) -> None:
        """Show one line of `metrics.jsonl`."""

    def close(self) -> None:
        """Send what is left."""


def open_sink(name: str, run: Path, config: Mapping[str, Any]) -> Sink:
    """Open the sink `name` for the run folder `run`; `config` is the recipe as plain values.

    Raises MoesaicError for an unknown name or a package that is not installed.
    """
    if name not in SINKS:
        raise MoesaicError(f"--log {name}: unknown; choose one of {', '.join(SINKS)}")
    return SINKS[name](run, config)


def scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line: tables as `key/name`, expert load as extremes, even load being 1."""
    out: dict[str, float] = {}
    for key, value in line.items():
        if key == "load" and value:
            shares = [share * len(layer) for layer in value for share in layer]
            out |= {"load/min": min(shares), "load/max": max(shares)}
        for name, number in value.items() if isinstance(value, Mapping) else [("", value)]:
            if isinstance(number, int | float) and key not in ("step", "at_step"):
                out[f"{key}/{name}".rstrip("/")] = float(number)
    return out


def step_of(line: Mapping[str, Any]) -> int:
    """Step of a line, or the step at which an event happened."""
    step: int = line["step"] if "step" in line else line["at_step"]
    return step


def _package(module: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MoesaicError(f"--log {extra} needs a package that is missing: pip install 'moesaic[{extra}]'") from error


class TensorBoard:
    """Event files under `RUN/tensorboard`."""

    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        _package("tensorboard", "tensorboard")  # torch's own message does not say what to install
        self._open = _package("torch.utils.tensorboard", "tensorboard").SummaryWriter
        self._folder, self._config = run / "tensorboard", dict(config)
        self._writer: Any = None

    def log(self, line: Mapping[str, Any]) -> None:
        """See Sink."""
        if self._writer is None:  # only now is the first step known: after a resume, hide what was seen beyond it
            self._writer = self._open(log_dir=str(self._folder), purge_step=step_of(line))
            self._writer.add_text("recipe", str(self._config), step_of(line))
        for name, value in scalars(line).items():
            self._writer.add_scalar(name, value, step_of(line))

    def close(self) -> None:
        """See Sink."""
        if self._writer is not None:
            self._writer.close()


class WandB:
    """A run of Weights & Biases, in project `moesaic`, under the run folder's name."""

    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        self._run = _package("wandb", "wandb").init(
            project="moesaic", id=run.name, name=run.name, dir=str(run), config=dict(config), resume="allow"
        )

    def log(self, line: Mapping[str, Any]) -> None:
        """See Sink."""
        if numbers := scalars(line):
            self._run.log(numbers, step=step_of(line))

    def close(self) -> None:
        """See Sink."""
        self._run.finish()


class Trackio:
    """A local trackio run, in project `moesaic`, under the run folder's name."""

    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        self._module = _package("trackio", "trackio")
        self._module.init(project="moesaic", name=run.name, config=dict(config), resume="allow")

    def log(self, line: Mapping[str, Any]) -> None:
        """See Sink."""
        if numbers := scalars(line):
            self._module.log(numbers, step=step_of(line))

    def close(self) -> None:
        """See Sink."""
        self._module.finish()


SINKS: Mapping[str, Callable[[Path, Mapping[str, Any]], Sink]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "trackio": Trackio,
}
