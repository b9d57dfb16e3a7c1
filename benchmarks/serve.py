"""Output tokens a second of ours and of other engines, on the same weights and the same requests, in one run.

    python benchmarks/serve.py [--quick] [--rounds 3] [--engines moesaic,llama.cpp]

One stream: a prompt of 128 tokens, 256 new ones; decoding alone, and with the prompt. Many: the 64 requests of
benchmarks/data/serve_requests.jsonl, all at t = 0; their output tokens over the time to the last one, prompts included.
Greedy, texts never end early. Each engine has an environment of its own (`make peers`) and each measurement a fresh
process. The first round tries every setting of benchmarks/serve_kit/engines.py; later rounds repeat the best of each
engine, the engines in turn. Medians over rounds. The roofline is made of rates measured between the rounds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from machine import describe, keep
from serve_kit import check, reference, roofline, workload
from serve_kit.engines import ENGINES, NOT_MEASURED, THREADS, Engine, Kind, Trial

from moesaic.interop import load_model

ROOT = Path(__file__).parents[1]
LIMIT_S = 1800
REPEATS = 3  # single streams of a process
BUSY = 0.5  # load average above which figures are not worth much


@dataclass(frozen=True)
class Plan:
    """What is asked of every engine. The first run of each list warms up."""

    one: list[list[workload.Ask]]
    many: list[list[workload.Ask]]

    def of(self, kind: Kind) -> list[list[workload.Ask]]:
        """The counted runs."""
        return (self.one if kind == "one" else self.many)[1:]


def make_plan(quick: bool) -> Plan:
    """The published requests; `quick` asks for so little that figures mean nothing."""
    vocabulary = reference.CONFIG.vocab_size
    one = [[workload.one(vocabulary, i)] for i in range(2 if quick else 1 + REPEATS)]
    many = workload.many(vocabulary, 6 if quick else workload.COUNT)
    if quick:
        one, many = [_cut(asks, 16) for asks in one], _cut(many, 8)
    return Plan(one, [_cut(many[:8], 8), many])


def _cut(asks: list[workload.Ask], output: int) -> list[workload.Ask]:
    return [workload.Ask(a.prompt, min(a.output, output)) for a in asks]


@dataclass
class Measured:
    """One engine with one setting: an answer of the driver for each round."""

    engine: Engine
    trial: Trial
    answers: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None

    def rate(self, kind: Kind, plan: Plan, decode: bool = False) -> float | None:
        """Median tokens a second; `decode`: of the tokens after the first."""
        rates = []
        for answer in self.answers:
            for run, row in zip(plan.of(kind), answer[kind], strict=True):
                tokens = sum(a.output for a in run)
                seconds = row["seconds"] - (row["first_s"] if decode else 0.0)
                rates.append((tokens - decode * len(run)) / seconds)
        return statistics.median(rates) if rates else None


def run_driver(found: Measured, folder: Path, peers: Path, plan: Plan) -> None:
    """One more answer of a driver, or the reason why there is none."""
    python = Path(sys.executable) if found.engine.peer is None else peers / found.engine.peer / "bin" / "python"
    if not python.exists():
        found.error = f"no {python}; make peers"
        return
    files = folder if found.trial.files == "folder" else folder.with_name(f"{folder.name}.{found.trial.files}")
    request: dict[str, Any] = {"model": str(files), "settings": dict(found.trial.settings)}
    for kind, runs in (("one", plan.one), ("many", plan.many)):
        request[kind] = [[asdict(a) for a in run] for run in runs] if kind in found.trial.kinds else []
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}  # drivers say how many
    if found.engine.peer is not None:
        env.pop("PYTHONPATH", None)
    with tempfile.TemporaryDirectory() as scratch:
        ask, answer = Path(scratch) / "request.json", Path(scratch) / "answer.json"
        ask.write_text(json.dumps(request))
        words = [python, found.engine.script, ask, answer]
        try:
            done = subprocess.run(words, env=env, capture_output=True, text=True, check=False, timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            found.error = f"not done after {LIMIT_S} s"
            return
        if done.returncode or not answer.is_file():
            last = [line for line in done.stderr.splitlines() if line.strip()]
            found.error = last[-1][:200] if last else f"status {done.returncode}"
            return
        found.answers.append(json.loads(answer.read_text()))


def prepare(folder: Path, peers: Path, trials: list[Trial]) -> None:
    """The model in every form that a trial reads."""
    reference.make_folder(folder)
    kinds = {t.files for t in trials}
    for kind in sorted(kinds & {"bf16.gguf", "f16.gguf"}):
        reference.make_gguf(folder, kind.removesuffix(".gguf"))
    exported, tool = folder.with_name(f"{folder.name}.openvino"), peers / "openvino" / "bin" / "optimum-cli"
    if "openvino" in kinds and tool.exists() and not exported.is_dir():
        words = [tool, "export", "openvino", "--model", folder, "--task", "text-generation-with-past"]
        subprocess.run([*words, "--weight-format", "fp16", exported], check=True, capture_output=True)


def best(group: list[Measured], kind: Kind, plan: Plan) -> Measured | None:
    """Of an engine's settings the fastest."""
    able = [m for m in group if m.error is None and kind in m.trial.kinds and m.answers]
    return max(able, key=lambda m: m.rate(kind, plan) or 0.0, default=None)


def main() -> None:
    """Measure, judge the answers, print the table, keep the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "serve_reference" / "model")
    parser.add_argument("--peers", type=Path, default=ROOT / ".peers")
    parser.add_argument("--engines", help="names with commas between them; default: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="does every driver work? one setting each, few tokens")
    parser.add_argument("--name", help="of the file in results/; default: serve_reference, and none with --quick")
    arguments = parser.parse_args()
    names = [e.name for e in ENGINES] if arguments.engines is None else arguments.engines.split(",")
    if unknown := set(names) - {e.name for e in ENGINES}:
        parser.error(f"no engine {min(unknown)}; known are {', '.join(e.name for e in ENGINES)}")
    chosen = [e for e in ENGINES if e.name in names]
    plan = make_plan(arguments.quick)
    groups = {e.name: [Measured(e, t) for t in _first_of(e.trials, arguments.quick)] for e in chosen}
    prepare(arguments.folder, arguments.peers, [m.trial for group in groups.values() for m in group])
    load = os.getloadavg()[0]
    if load > BUSY:
        print(f"warning: the load average is {load:.1f}; figures of a busy machine are worth little", file=sys.stderr)
    torch.set_num_threads(THREADS)
    about = describe() | {"load_average": load}
    rates = [roofline.measure()]
    for number in range(1 if arguments.quick else arguments.rounds):
        for group in groups.values():
            winners = [best(group, kind, plan) for kind in ("one", "many")]
            for found in group if number == 0 else [m for m in group if m in winners]:
                print(f"round {number + 1}: {found.engine.name}, {found.trial.words}", file=sys.stderr, flush=True)
                run_driver(found, arguments.folder, arguments.peers, plan)
                if found.error:
                    print(f"  {found.error}", file=sys.stderr, flush=True)
        rates.append(roofline.measure())
    machine = roofline.Machine(statistics.median(r.bandwidth for r in rates), statistics.median(r.peak for r in rates))
    result = report(groups, plan, machine, arguments.folder)
    result |= {"machine": about, "rates": [asdict(r) for r in rates]}
    result |= {"model": reference.describe(arguments.folder), "recipe": f"{' '.join(sys.argv)}"}
    if name := arguments.name or (None if arguments.quick else "serve_reference"):
        print(keep(name, result))


def _first_of(trials: tuple[Trial, ...], quick: bool) -> list[Trial]:
    """All trials; `quick`: the first for each kind."""
    if not quick:
        return list(trials)
    places = [next(i for i, t in enumerate(trials) if kind in t.kinds) for kind in ("one", "many")]
    return [trials[i] for i in dict.fromkeys(places)]


def report(groups: dict[str, list[Measured]], plan: Plan, machine: roofline.Machine, folder: Path) -> dict[str, Any]:
    """Print the tables; what is kept."""
    torch.set_num_threads(1)  # judging is not timed, and two threads would wait for one another on a busy machine
    exact = load_model(folder, dtype=torch.float32).requires_grad_(False)
    config = reference.CONFIG
    tops = {}
    for kind in ("one", "many"):
        seconds = [roofline.roofline(config, machine, run) for run in plan.of(kind)]
        tokens = [sum(a.output for a in run) for run in plan.of(kind)]
        tops[kind] = statistics.median(n / s for n, s in zip(tokens, seconds, strict=True))
    print(f"read {machine.bandwidth / 1e9:.1f} GB/s, bf16 products {machine.peak / 1e9:.0f} GFLOP/s")
    print("| engine | one stream, decode | one stream | 64 requests | of the roofline | load, s | answers right |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    kept: dict[str, Any] = {"roofline": tops, "engines": {}, "not_measured": NOT_MEASURED}
    for name, group in groups.items():
        one, many = best(group, "one", plan), best(group, "many", plan)
        row: dict[str, Any] = {"trials": [_trial(m, plan) for m in group]}
        if one is None or many is None:
            row["error"] = next((m.error for m in group if m.error), "no answer")
            print(f"| {name} | - | - | - | - | - | {row['error']} |")
            kept["engines"][name] = row
            continue
        figures = {
            "decode": one.rate("one", plan, decode=True),
            "one": one.rate("one", plan),
            "many": many.rate("many", plan),
        }
        judged = _judged(exact, plan, many)
        load_s = statistics.median(a["load_s"] for a in one.answers)
        row |= figures | {"settings": {"one": one.trial.words, "many": many.trial.words}, "judged": judged}
        kept["engines"][name] = row | {"version": one.answers[0]["version"], "load_s": load_s}
        shares = ", ".join(f"{figures[kind] / tops[kind]:.0%}" for kind in ("one", "many"))
        cells = [f"{name} {one.answers[0]['version']}", *(f"{figures[k]:.1f}" for k in ("decode", "one", "many"))]
        print(f"| {' | '.join(cells)} | {shares} | {load_s:.1f} | {1 - judged['beyond_rounding']:.1%} |")
    print(f"| roofline | | {tops['one']:.1f} | {tops['many']:.1f} | | | |")
    for name, row in kept["engines"].items():
        if "settings" in row:
            print(f"{name}: one stream with {row['settings']['one']}; 64 requests with {row['settings']['many']}")
    for name, why in NOT_MEASURED.items():
        print(f"{name} is not measured: {why}")
    return kept


def _trial(found: Measured, plan: Plan) -> dict[str, Any]:
    row: dict[str, Any] = {"settings": found.trial.words, "error": found.error}
    for kind in found.trial.kinds:
        row[kind] = found.rate(kind, plan)
    return row | {"peak_bytes": max((a["peak_bytes"] for a in found.answers), default=None)}


def _judged(exact: Any, plan: Plan, found: Measured) -> dict[str, Any]:
    """The shortest of the answers, as the exact model takes its time."""
    run, tokens = plan.of("many")[0], found.answers[0]["many"][0]["tokens"]
    short = sorted(range(len(run)), key=lambda i: len(run[i].prompt) + run[i].output)[:8]
    return check.judge(exact, [run[i].prompt for i in short], [tokens[i] for i in short])


if __name__ == "__main__":
    main()
