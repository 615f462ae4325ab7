"""How a text is cut before its bytes are joined to tokens: no token spans two of these pieces.

Why: a tokenizer's cut is a regular expression, which two libraries run here, `tokenizers` with Oniguruma's and tiktoken
with Rust's. Of these ones it is tested that both cut every text alike. It must not know what is joined.
"""

from __future__ import annotations

# What a token may span: pieces of Python that mean something by themselves. A line's end keeps the next line's
# indentation, a name keeps the dot or underscore before it, and quotes and brackets stand alone, since a small model
# has to learn which of them closes which.
PIECES = (
    r"(?:[ \t]*\r?\n)+[ \t]*",
    r"[ .]?__[a-z]+__",
    r"[ .]?_{0,2}\p{L}+",
    r" ?\p{N}{1,3}",
    r' ?(?:"""|\'\'\'|["\'])',
    r" ?(?:\(\)|\[\]|\{\}|[()\[\]{}])",
    r" ?[^\s\p{L}\p{N}\"'()\[\]{}._]+",
    r" ?[._]+",
    r"\s+",
)

# The same for text of any kind: a word keeps the space or sign before it, numbers come in groups of three digits, signs
# stay together, and the end of lines is apart from what follows.
PROSE_PIECES = (
    r"[^\r\n\p{L}\p{N}]?\p{L}+",
    r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
)

# The cuts of OpenAI's encodings, as their definitions in tiktoken say; Llama 3 and Qwen took over the second.
GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN = CL100K.replace(r"\p{N}{1,3}", r"\p{N}")

CUTS = frozenset({"|".join(PIECES), "|".join(PROSE_PIECES), GPT2, CL100K, O200K, QWEN})
