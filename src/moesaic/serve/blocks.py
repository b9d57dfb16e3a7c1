"""Pages of key/value memory: who holds which block, and which blocks can be shared by what they hold.

A block is `block_size` positions of one sequence. A full block whose tokens are certain may be published; another
sequence with the same beginning then takes it instead of computing it again (Kwon et al. 2023, section 4.3). What
nobody holds stays published until its memory is needed, least recently held first.

No torch here: blocks are numbers, and the runner owns the memory behind them.
"""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

Key = tuple[Hashable, tuple[int, ...]]
"""What comes before (the serial number of the parent's content, or `("root", root)`) and the block's own tokens. A
dictionary compares keys, not only their hashes, so two beginnings are never taken for one another."""


@dataclass
class _Block:
    holders: int = 0
    key: Key | None = None  # None: not published
    serial: int = 0  # of the content; never used twice, so children of an evicted block are never found


class BlockPool:
    """A fixed number of blocks with reference counts and a prefix cache. Deterministic."""

    def __init__(self, blocks: int, block_size: int, caching: bool = True) -> None:
        """Raises ValueError for a pool without room."""
        if blocks < 1 or block_size < 1:
            raise ValueError(f"a pool needs at least one block of one position, not {blocks} of {block_size}")
        self.size, self.block_size, self.caching = blocks, block_size, caching
        self._blocks = [_Block() for _ in range(blocks)]
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(blocks))  # next to be given away first
        self._published: dict[Key, int] = {}
        self._serial = 0

    @property
    def free(self) -> int:
        """Blocks that nobody holds, whether or not they are published."""
        return len(self._free)

    def blocks_for(self, positions: int) -> int:
        """Blocks that so many positions take."""
        return -(-positions // self.block_size)

    def match(self, tokens: Sequence[int], root: Hashable = None) -> list[int]:
        """Published blocks that hold the beginning of `tokens`; of equal tokens under another `root`, none.

        At least one token is left over: its logits are wanted. Nothing is held yet; see `hold`.
        """
        found: list[int] = []
        parent: Hashable = ("root", root)
        for end in range(self.block_size, len(tokens), self.block_size):
            block = self._published.get((parent, tuple(tokens[end - self.block_size : end])))
            if block is None:
                break
            found.append(block)
            parent = self._blocks[block].serial
        return found

    def hold(self, blocks: Sequence[int]) -> None:
        """One more holder of each: of what `match` found."""
        for block in blocks:
            self._blocks[block].holders += 1
            self._free.pop(block, None)

    def take(self, count: int) -> list[int] | None:
        """`count` empty blocks with one holder each, or None when there are not so many; all or nothing."""
        if count > len(self._free):
            return None
        taken = []
        for _ in range(count):
            number, _ = self._free.popitem(last=False)
            block = self._blocks[number]
            self._unpublish(block)
            block.holders = 1
            taken.append(number)
        return taken

    def release(self, blocks: Sequence[int]) -> None:
        """One holder less of each block of a sequence, given from its beginning.

        The end of a sequence goes first when memory is needed: a block is of no use without those before it.
        """
        for number in reversed(blocks):
            block = self._blocks[number]
            if block.holders < 1:
                raise ValueError(f"block {number} is released and nobody holds it")
            block.holders -= 1
            if not block.holders:
                self._free[number] = None
                if block.key is None:
                    self._free.move_to_end(number, last=False)  # nothing in it is of use to anybody

    def publish(self, blocks: Sequence[int], tokens: Sequence[int], since: int = 0, root: Hashable = None) -> None:
        """Offer the full blocks of a sequence from block number `since` on; all before are those that hold `tokens`.

        Only tokens that are certain and computed may come: guesses of a draft never. A beginning that is published
        already stays with its first block, and what follows it here is not offered.
        """
        if not self.caching:
            return
        for i in range(since, len(tokens) // self.block_size):
            parent = self._blocks[blocks[i - 1]] if i else None
            if parent is not None and parent.key is None:
                return
            block = self._blocks[blocks[i]]
            before = ("root", root) if parent is None else parent.serial
            key = (before, tuple(tokens[i * self.block_size : (i + 1) * self.block_size]))
            if block.key is not None or key in self._published:
                continue
            self._serial += 1
            block.key, block.serial = key, self._serial
            self._published[key] = blocks[i]

    def _unpublish(self, block: _Block) -> None:
        if block.key is not None:
            del self._published[block.key]
            block.key = None

    def check(self, held: Sequence[Sequence[int]]) -> None:
        """Every invariant, given the blocks that each sequence holds. Raises AssertionError."""
        counts = [0] * self.size
        for blocks in held:
            assert len(set(blocks)) == len(blocks), f"a sequence holds a block twice: {blocks}"
            for number in blocks:
                counts[number] += 1
        for number, block in enumerate(self._blocks):
            assert block.holders == counts[number], f"block {number}: {block.holders} holders, {counts[number]} hold it"
            assert (number in self._free) == (block.holders == 0), f"block {number}: free and held, or neither"
            if block.key is not None:
                assert self._published[block.key] == number, f"block {number} is published as another"
        assert len(self._published) == sum(b.key is not None for b in self._blocks)
