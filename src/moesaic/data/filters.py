"""Rules that drop documents, few and cited; each names what it drops, so that reports can count.

text  Gopher (Rae et al. 2021, table A1): words that have a letter, share of duplicate lines.
code  StarCoder (Li et al. 2023, sec. 3.1) and Codex (Chen et al. 2021, sec. 3.1): long lines,
      few letters and digits.
chat  duplicate lines (somebody holding a key down), an assistant that never speaks.
"""

from moesaic.data.sources import Document
from moesaic.recipe import Data, Source

MIN_WORDS_WITH_LETTERS = 0.8  # Gopher: at least 80 % of words
MAX_DUPLICATE_LINES = 0.3  # Gopher: at most 30 % of lines
MAX_LINE_CHARS = 1000  # StarCoder
MAX_MEAN_LINE_CHARS = 100  # StarCoder, Codex
MIN_ALPHANUMERIC = 0.25  # StarCoder, Codex
FEWEST_LINES = 8  # below, a share of lines says nothing


def reason_to_drop(document: Document, source: Source, data: Data) -> str | None:
    """Why `document` is dropped, in a few words, or None when it stays."""
    content = document.content
    if len(content) < data.min_chars:
        return f"shorter than {data.min_chars} characters"
    lines = [line for line in content.splitlines() if line.strip()]
    if source.kind == "code":
        longest = max((len(line) for line in lines), default=0)
        if longest > MAX_LINE_CHARS or len(content) > MAX_MEAN_LINE_CHARS * max(len(lines), 1):
            return "lines too long for code"
        if sum(map(str.isalnum, content)) < MIN_ALPHANUMERIC * len(content):
            return "few letters and digits"
        return None
    if len(lines) >= FEWEST_LINES and len(set(lines)) < (1 - MAX_DUPLICATE_LINES) * len(lines):
        return "duplicate lines"
    if document.messages is not None:
        answers = any(m["role"] == "assistant" and m["content"].strip() for m in document.messages)
        return None if answers else "no assistant turn"
    words = content.split()
    if sum(any(map(str.isalpha, word)) for word in words) < MIN_WORDS_WITH_LETTERS * len(words):
        return "words without letters"
    return None
