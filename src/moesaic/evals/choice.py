"""Multiple choice: the answer is the choice that the model finds likeliest after the question.

Two scores, as is usual: by the log-likelihood of the whole choice, and by log-likelihood a byte, which does not
favour short choices. The text is "CONTEXT CHOICE", and the space belongs to the choice.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from moesaic.data import Tokenizer
from moesaic.errors import DataError
from moesaic.evals.likelihood import Done, Request, log_likelihoods
from moesaic.evals.suites import Item
from moesaic.model import Transformer


@dataclass(frozen=True)
class Answer:
    """What the model made of one item."""

    id: str
    log_likelihoods: tuple[float, ...]
    """Nats, by choice."""
    bytes: tuple[int, ...]
    """UTF-8 bytes of each choice, without the space before it."""
    label: int
    cut: bool
    """Whether the question was too long for the model and lost its beginning."""

    @property
    def prediction(self) -> int:
        """The likeliest choice, the first of equal ones."""
        return _largest(self.log_likelihoods)

    @property
    def prediction_by_byte(self) -> int:
        """The choice with the highest log-likelihood a byte."""
        return _largest([nats / size for nats, size in zip(self.log_likelihoods, self.bytes, strict=True)])


@dataclass(frozen=True)
class ChoiceScore:
    """Shares from 0 to 1 of `items` items, with standard errors of the binomial: sqrt(p (1 - p) / (n - 1))."""

    items: int
    accuracy: float
    accuracy_error: float
    accuracy_by_byte: float
    accuracy_by_byte_error: float
    chance: float
    """What guessing gets on average."""
    cut: int
    """Items whose context was cut on the left."""


def answer_items(
    model: Transformer, tokenizer: Tokenizer, items: Sequence[Item], *, done: Done | None = None
) -> list[Answer]:
    """Log-likelihood of every choice of every item. Raises MoesaicError."""
    requests = choice_requests(tokenizer, items)
    found = iter(log_likelihoods(model, requests, done=done))
    answers = []
    for item in items:
        results = [next(found) for _ in item.choices]
        sizes = tuple(len(choice.encode()) for choice in item.choices)
        nats = tuple(result.log_likelihood for result in results)
        answers.append(Answer(item.id, nats, sizes, item.label, any(result.cut for result in results)))
    return answers


def choice_requests(tokenizer: Tokenizer, items: Sequence[Item]) -> list[Request]:
    """One request for each choice of each item, in order.

    Context and choice are encoded as one text, which is split after the tokens that it shares with the context
    alone: a token across the boundary counts to the choice. Tokenizers that split before a space (GPT-2's kind, and
    Llama's) have none. A context of no tokens becomes the end-of-text token.
    """
    prefix = tokenizer.prefix_ids
    contexts = tokenizer.encode_batch([item.context for item in items])
    texts = iter(tokenizer.encode_batch([text for item in items for text in item.texts]))
    requests = []
    for item, context in zip(items, contexts, strict=True):
        for _ in item.choices:
            whole = next(texts)
            at = 0
            while at < min(len(context), len(whole) - 1) and context[at] == whole[at]:
                at += 1
            requests.append(Request([*prefix, *whole[:at]] or [tokenizer.eos_id], whole[at:]))
    return requests


def score(answers: Sequence[Answer]) -> ChoiceScore:
    """Accuracies over `answers`. Raises DataError when there are none."""
    if not answers:
        raise DataError("no items to score; raise --limit")
    n = len(answers)
    plain = sum(a.prediction == a.label for a in answers) / n
    by_byte = sum(a.prediction_by_byte == a.label for a in answers) / n
    return ChoiceScore(
        items=n,
        accuracy=plain,
        accuracy_error=_binomial_error(plain, n),
        accuracy_by_byte=by_byte,
        accuracy_by_byte_error=_binomial_error(by_byte, n),
        chance=sum(1 / len(a.log_likelihoods) for a in answers) / n,
        cut=sum(a.cut for a in answers),
    )


def _binomial_error(share: float, n: int) -> float:
    return math.sqrt(share * (1 - share) / max(n - 1, 1))


def _largest(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)
