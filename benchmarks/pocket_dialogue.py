"""How good a trained pocket model is at dialogue, on conversations it never saw.

    python benchmarks/pocket_dialogue.py runs/pocket [--prompts 200]

Bits per byte over every held-out dialogue, and the share of replies that end their turn by themselves: a prompt is a
held-out dialogue up to its first message, the reply is sampled, and 128 new tokens are the limit.
"""

import argparse
import json
from pathlib import Path

from machine import describe, keep

from moesaic.data import DataFolder, data_path
from moesaic.evals import bits_per_byte
from moesaic.interop import load_model
from moesaic.model import SamplingSettings, generate_tokens
from moesaic.recipe import read_recipe

LIMIT = 128  # new tokens


def first_turns(data: DataFolder, source: str, count: int) -> list[list[int]]:
    """Prompts as token ids: the first message of each held-out dialogue and the header of the answer."""
    tokenizer, shard = data.tokenizer, data.held_out[source]
    footer, header = tokenizer.turn_footer, tokenizer.turn_header("assistant")
    prompts = []
    for i in range(min(count, len(shard))):
        ids = shard.doc(i).tolist()
        end = next(j for j in range(len(ids)) if ids[j : j + len(footer)] == footer) + len(footer)
        prompts.append(ids[:end] + header)
    return prompts


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--source", default="dialogue")
    arguments = parser.parse_args()
    recipe = read_recipe(arguments.run / "recipe.toml")
    data = DataFolder.open(data_path(recipe, arguments.run.parent / "data"))
    model = load_model(arguments.run / "model")
    bits = bits_per_byte(model, data, arguments.source, model.config.context)
    prompts = first_turns(data, arguments.source, arguments.prompts)
    ended = 0
    for seed, prompt in enumerate(prompts):
        settings = SamplingSettings(
            temperature=0.7, top_p=0.9, max_tokens=LIMIT, seed=seed, stop_ids=data.tokenizer.stop_ids
        )
        *_, last = generate_tokens(model, prompt, settings)
        ended += last.finish_reason == "stop"
    result = {
        "bits_per_byte": bits.bits_per_byte,
        "standard_error": bits.standard_error,
        "held_out_bytes": bits.bytes,
        "prompts": len(prompts),
        "ended_by_themselves": ended / len(prompts),
        "recipe": recipe.system_hash(),
        "machine": describe(),
    }
    print(json.dumps(result, indent=1))
    print(keep("pocket_dialogue", result))


if __name__ == "__main__":
    main()
