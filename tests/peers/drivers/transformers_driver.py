"""Greedy tokens and log-probabilities from `transformers`. Runs in .peers/transformers: REQUEST.json ANSWER.json."""

import json
import sys
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM


def main(request_file: str, answer_file: str) -> None:
    request = json.loads(Path(request_file).read_text())
    torch.set_num_threads(request["threads"])
    model = AutoModelForCausalLM.from_pretrained(request["model"], dtype=torch.float32, attn_implementation="sdpa")
    model.eval()
    model.generation_config.eos_token_id = None  # go on to the last token, whatever it is
    greedy, log_probs = [], []
    for prompt, continuation in zip(request["prompts"], request["continuations"], strict=True):
        ids = torch.tensor([prompt])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=request["new_tokens"],
            pad_token_id=0,
        )
        greedy.append(out[0, len(prompt) :].tolist())
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + continuation])).logits[0, len(prompt) - 1 : -1]
        chosen = torch.tensor(continuation)[:, None]
        log_probs.append(logits.float().log_softmax(-1).gather(1, chosen)[:, 0].tolist())
    answer = {"version": transformers.__version__, "greedy": greedy, "log_probs": log_probs}
    Path(answer_file).write_text(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
