"""The demo's sixteen chats, on a tiny model with random weights; and how it ends."""

import io
import re
from pathlib import Path

import pytest
import torch
from rich.console import Console

from moesaic.data import Tokenizer
from moesaic.demo import crowd, run_demo, tour
from moesaic.errors import MoesaicError
from moesaic.interop import save_model
from moesaic.model import Transformer, initialise
from moesaic.recipe import Model


def played(folder: Path) -> str:
    out = io.StringIO()
    crowd.sixteen_chats(Console(file=out, width=200), folder)
    return out.getvalue()


def test_sixteen_chats_say_what_happened(served_model: Path) -> None:
    text = played(served_model)
    for number in (1, 2):
        (found,) = re.findall(rf"^turn {number} {{5}}(.+)  at most 16 answers in a step, (\d+) steps$", text, re.M)
        assert len(found[0]) == min(crowd.WIDTH, int(found[1]))
        assert "█" in found[0]
    (tokens,) = re.findall(r"tokens/s: ([\d,]+) written in", text)
    assert 2 * 16 <= int(tokens.replace(",", "")) <= 2 * 16 * crowd.MOST_TOKENS
    assert re.search(r"^step time +predicted \d+\.\d+ ms, actual \d+\.\d+ ms", text, re.M)
    layers = re.findall(r"^ +\d (.{4})  imbalance (\S+) \(expert \d\), idlest (\S+) \(expert \d\)$", text, re.M)
    assert len(layers) == 2  # of four experts each
    assert all(float(idle) <= 1 <= float(hot) for _, hot, idle in layers)
    cached = [
        (int(a), int(b))
        for a, b in re.findall(r"turn \d: (\d+) of (\d+) prompt tokens came from the prefix cache", text)
    ]
    assert cached[0][0] == 0
    assert 0 < cached[1][0] < cached[1][1]  # the first turn is there, what was asked then is not
    assert re.search(r"^cost +\$0\.\d+ for 1,000 tokens written, \$0\.\d+ for 1,000 read", text, re.M)
    assert "That price is an example" in text
    assert text.count(crowd.THEN) == crowd.SHOWN


def test_a_dense_model_has_no_experts_to_show(served_model: Path, tmp_path: Path) -> None:
    shape = {"vocab_size": 300, "d_model": 32, "n_layers": 1, "n_heads": 2, "head_dim": 16, "d_ff": 32}
    model = Transformer(Model.model_validate(shape | {"n_experts": 1, "top_k": 1, "context": 256}))
    initialise(model, seed=0)
    Tokenizer.load(served_model).save(tmp_path / "tokenizer")
    save_model(model, tmp_path / "model", tokenizer_folder=tmp_path / "tokenizer", dtype=torch.float32)
    assert "none: the model is dense" in played(tmp_path / "model")


def test_a_row_of_blocks_keeps_its_proportions_and_its_width() -> None:
    assert crowd.bars([0, 4, 8]) == " ▄█"
    assert crowd.bars([0, 0]) == "  "
    assert crowd.bars([1] * 1000) == "█" * crowd.WIDTH


def test_the_act_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MoesaicError, match=r"no model in runs/pocket; act 3 trains it"):
        run_demo([5])
    with pytest.raises(MoesaicError, match=r"choose from 1 to 5"):
        run_demo([6])


@pytest.mark.parametrize("made", [(), ("runs/pocket/model",), ("runs/pocket/model", "runs/smollm2")])
def test_the_tour_ends_with_how_to_open_the_page(
    made: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in made:
        Path(folder).mkdir(parents=True)
        (Path(folder) / "config.json").write_text("{}")
    out = io.StringIO()
    tour.how_to_go_on(Console(file=out, width=200))
    shown = re.findall(r"moesaic serve (\S+) +then open (\S+)", out.getvalue())
    assert shown == [(folder.removesuffix("/model"), "http://127.0.0.1:8000/") for folder in made]
