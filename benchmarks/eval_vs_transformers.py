"""Log-likelihoods of four suites by ours and by transformers: items and tokens a second, and whether they agree.

    python benchmarks/eval_vs_transformers.py MODEL [--items 200] [--rounds 3] [--threads N]

Both sides get the same requests in fp32 in one process, in turn, the order changing from round to round; counted is
the median. Theirs is AutoModelForCausalLM on the same folder: sequences sorted by length, padded on the right, in
batches of --their-tokens, logits of the batch, log-softmax of the continuation only. Tokens are those of context and
continuation of every choice, the same number for both; what a side does not compute counts as well.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from machine import describe, keep
from transformers import AutoModelForCausalLM

from moesaic import load
from moesaic.evals import SUITES, Item, Request, choice_requests, locate_suites, log_likelihoods, read_items

Engine = Callable[[Sequence[Request]], list[float]]


def theirs(model: Any, tokens_a_batch: int) -> Engine:
    """The sensible loop around transformers."""

    @torch.inference_mode()
    def run(requests: Sequence[Request]) -> list[float]:
        found = [0.0] * len(requests)
        order = sorted(range(len(requests)), key=lambda i: -len(requests[i].context) - len(requests[i].continuation))
        while order:
            longest = len(requests[order[0]].context) + len(requests[order[0]].continuation) - 1
            size = max(1, tokens_a_batch // longest)
            batch, order = order[:size], order[size:]
            rows = [[*requests[i].context, *requests[i].continuation] for i in batch]
            tokens = torch.zeros(len(rows), longest, dtype=torch.int64)
            mask = torch.zeros_like(tokens)
            for n, row in enumerate(rows):
                tokens[n, : len(row) - 1] = torch.tensor(row[:-1])
                mask[n, : len(row) - 1] = 1
            logits = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
            for n, i in enumerate(batch):
                wanted = torch.tensor(requests[i].continuation)
                begin = len(requests[i].context) - 1
                log_p = logits[n, begin : begin + len(wanted)].float().log_softmax(dim=-1)
                found[i] = float(log_p.gather(1, wanted[:, None]).sum())
        return found

    return run


def accuracy(items: Sequence[Item], values: Sequence[float]) -> float:
    """Share of items whose likeliest choice is the right one."""
    right, at = 0, 0
    for item in items:
        mine = values[at : at + len(item.choices)]
        right += max(range(len(mine)), key=mine.__getitem__) == item.label
        at += len(item.choices)
    return right / len(items)


def main() -> None:
    """Alternate the sides suite by suite, print a table, keep the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a model folder")
    parser.add_argument("--items", type=int, default=200, help="of each suite")
    parser.add_argument("--rounds", type=int, default=3, help="counted, after one of a few items to warm up")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--their-tokens", type=int, default=1024, help="of a batch of theirs; try what suits them best")
    parser.add_argument("--home", type=Path, default=Path("runs/data"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    opened = load(arguments.model, dtype=torch.float32)
    peer = AutoModelForCausalLM.from_pretrained(opened.folder, dtype=torch.float32).eval()
    sides: dict[str, Engine] = {
        "ours": lambda r: [found.log_likelihood for found in log_likelihoods(opened.model, r)],
        "transformers": theirs(peer, arguments.their_tokens),
    }
    wheel = locate_suites(arguments.home)
    rows: dict[str, Any] = {}
    print("| suite | items | tokens | ours, tokens/s | transformers | times | largest difference | accuracy |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, suite in SUITES.items():
        items = read_items(suite, wheel, arguments.items)
        requests = choice_requests(opened.tokenizer, items)
        tokens = sum(len(r.context) + len(r.continuation) for r in requests)
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        values: dict[str, list[float]] = {}
        for engine in sides.values():
            engine(requests[: 2 * len(items[0].choices)])
        for number in range(arguments.rounds):
            for side in list(sides) if number % 2 == 0 else list(reversed(sides)):
                began = time.perf_counter()
                values[side] = sides[side](requests)
                seconds[side].append(time.perf_counter() - began)
        median = {side: statistics.median(times) for side, times in seconds.items()}
        difference = max(abs(a - b) for a, b in zip(values["ours"], values["transformers"], strict=True))
        scores = {side: accuracy(items, found) for side, found in values.items()}
        rows[name] = {
            "items": len(items),
            "tokens": tokens,
            "tokens_per_second": {side: tokens / s for side, s in median.items()},
            "items_per_second": {side: len(items) / s for side, s in median.items()},
            "ratio": median["transformers"] / median["ours"],
            "largest_difference_nats": difference,
            "accuracy": scores,
            "accuracies_equal": scores["ours"] == scores["transformers"],
            "seconds": seconds,
        }
        print(
            f"| {name} | {len(items)} | {tokens:,} | {tokens / median['ours']:,.0f} | "
            f"{tokens / median['transformers']:,.0f} | {rows[name]['ratio']:.2f} | {difference:.1e} nats | "
            f"{scores['ours']:.3f} and {scores['transformers']:.3f} |",
            flush=True,
        )
    shape = opened.model.config.model_dump(mode="json")
    print(
        keep(
            "eval_vs_transformers",
            {"machine": describe(), "model": shape, "their_tokens": arguments.their_tokens, "rows": rows},
        )
    )


if __name__ == "__main__":
    main()
