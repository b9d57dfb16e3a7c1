"""How long drafts should be, by what they have gained: tokens a second at each length, for each batch size.

A check of more tokens costs little where reading weights is the cost, and a lot where arithmetic is; a draft costs its
own time; and how often it is right depends on the text. So lengths are tried and the quickest is used. Trials are
paid from a purse that fills with a small share of all time: drafting that does not pay costs no more than that over
no drafting at all, after the first few steps.

Pure Python, and the same for the same history.
"""

from dataclasses import dataclass, field

SHARE = 0.01  # of time, for trials
CREDIT = 2.0  # steps without a draft: what the purse has at first, and at most
FEW, ENOUGH = 3, 8  # trials after which a length that looks no better is left; recent ones before it can be chosen
EVERY = 32  # steps between trials when all lengths are known
MEMORY = 0.97  # weight of a step among later ones at the same length: about the last 30 count
STALE = 0.5  # weight of what is older than `EVERY` steps
MARGIN = 1.02  # how much quicker than another a length must be to take its place
HELD_UP = 2.0  # a step of more than so many times the usual one was held up by something else, and counts as that


@dataclass
class _Sums:
    """Steps at one length, the recent weighing more."""

    steps: float = 0.0
    tokens: float = 0.0
    seconds: float = 0.0
    tries: int = 0
    last: int = 0
    """When it was tried last, in steps of the batch size."""

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds if self.tries else 0.0


@dataclass
class _Size:
    """What is known of one batch size."""

    by_length: dict[int, _Sums] = field(default_factory=dict)
    best: int = 0
    steps: int = 0


class Gain:
    """Chooses the draft length of each step. Batch sizes are taken together from one power of two to the next."""

    def __init__(self, longest: int) -> None:
        """`longest`: guesses for one row in one step, at most."""
        self._lengths = (0, *sorted({2**i for i in range(longest.bit_length()) if 2**i < longest} | {longest} - {0}))
        self._sizes: dict[int, _Size] = {}
        self._purse = 0.0  # seconds that trials may lose, at any batch size
        self._began = False

    def length(self, batch: int) -> int:
        """Guesses for each row of the next step; the same until `learn` is called."""
        size = self._sizes.get(_bucket(batch))
        if size is None:
            return 0
        trial = self._trial(size)
        return size.best if trial is None else trial

    def learn(self, batch: int, drafted_per_row: int, tokens_per_row: float, seconds: float) -> None:
        """What a step of decodes gave; leave out steps that computed prompts too.

        `drafted_per_row`: guesses that were checked, which may be fewer than asked for; `tokens_per_row`: new tokens.
        """
        if seconds <= 0 or batch < 1:
            return
        size = self._sizes.setdefault(_bucket(batch), _Size({n: _Sums() for n in self._lengths}))
        length = max(n for n in self._lengths if n <= drafted_per_row)
        sums = size.by_length[length]
        if sums.tries:
            seconds = min(seconds, HELD_UP * sums.seconds / sums.steps)
        self._pay(size, length, batch * tokens_per_row, seconds)
        size.steps += 1
        memory = MEMORY if size.steps - sums.last <= EVERY else STALE
        sums.steps = memory * sums.steps + 1
        sums.tokens = memory * sums.tokens + batch * tokens_per_row
        sums.seconds = memory * sums.seconds + seconds
        sums.tries += 1
        sums.last = size.steps
        best = max(self._lengths, key=lambda n: size.by_length[n].rate if size.by_length[n].steps >= ENOUGH else 0.0)
        if size.by_length[best].rate > MARGIN * size.by_length[size.best].rate:
            size.best = best

    def reason(self, batch: int) -> str:
        """Why the length is what it is, in a few words."""
        size = self._sizes.get(_bucket(batch))
        tried = [] if size is None else [n for n in self._lengths[1:] if size.by_length[n].tries >= FEW]
        if size is None or not tried or size.by_length[0].tries < FEW:
            return f"not measured yet at batch {batch}"
        shown = size.best or max(tried, key=lambda n: size.by_length[n].rate)
        plain, drafted = size.by_length[0], size.by_length[shown]
        tokens = (drafted.tokens / drafted.steps) / (plain.tokens / plain.steps)
        time = (drafted.seconds / drafted.steps) / (plain.seconds / plain.steps)
        what = "1 guess" if shown == 1 else f"{shown} guesses"
        found = f"at batch {batch}: {tokens:.1f} tokens a step take {time:.1f} x the time"
        return f"{what} {found}" if size.best else f"off {found} with {what}"

    def _trial(self, size: _Size) -> int | None:
        """Another length than the best, if it is time for it and the purse has something."""
        known = size.by_length
        if known[0].tries < FEW:
            return 0
        if self._purse <= 0:
            return None
        for n in self._lengths:
            promising = known[n].rate > known[size.best].rate
            if known[n].tries < FEW or (promising and known[n].steps < ENOUGH):
                return n
        others = [n for n in self._lengths if n != size.best]
        if not others or size.steps - max(known[n].last for n in others) < EVERY:
            return None
        if size.best and size.steps - known[0].last >= 2 * EVERY:
            return 0  # every second time: whether drafting pays at all matters most
        return min(others, key=lambda n: known[n].last)

    def _pay(self, size: _Size, length: int, tokens: float, seconds: float) -> None:
        """Time goes into the purse; what a trial took longer than the same tokens without a draft comes out."""
        plain = size.by_length[0]
        if plain.tries < FEW:
            return
        step = plain.seconds / plain.steps
        if not self._began:
            self._began, self._purse = True, CREDIT * step
        lost = 0.0 if length in (0, size.best) else seconds - tokens / plain.rate
        self._purse = min(self._purse + SHARE * seconds - lost, CREDIT * step)


def _bucket(batch: int) -> int:
    return max(batch - 1, 0).bit_length()
