"""What tells running text from what is none in any language: lines that repeat, and characters that spell nothing.

Two of the rules by which Rae et al. 2021 (appendix A.1.1) keep pages, those that know no word. It must not know what is
done with a document.
"""

from __future__ import annotations

import unicodedata
from collections import Counter


def repeated(text: str) -> float:
    """The share of a text's characters in lines that stood before in it; blank lines and white space around apart."""
    seen: set[str] = set()
    again = whole = 0
    for line in map(str.strip, text.splitlines()):
        whole += len(line)
        again += len(line) if line in seen else 0
        seen.add(line)
    return again / whole if whole else 0.0


def worded(text: str) -> float:
    """The share of letters, their marks and digits among a text's characters that are no white space."""
    counts = {one: count for one, count in Counter(text).items() if not one.isspace()}
    spelling = sum(count for one, count in counts.items() if unicodedata.category(one)[0] in "LMN")
    return spelling / max(1, sum(counts.values()))
