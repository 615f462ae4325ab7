"""What vLLM makes of an export: `python with_vllm.py FOLDER PROMPT...`, in vLLM's own environment.

Prints a line of JSON for each prompt: its tokens, the log-probability of each but the first, and 40 that follow.
"""

from __future__ import annotations

import json
import sys

from vllm import LLM, SamplingParams


def main(folder: str, *prompts: str) -> None:
    """Go on from the prompts with the likeliest tokens."""
    model = LLM(folder, dtype="float32", enforce_eager=True, max_num_seqs=4)
    for made in model.generate(list(prompts), SamplingParams(temperature=0, max_tokens=40, prompt_logprobs=0)):
        read = made.prompt_token_ids
        known = [entry[token].logprob for token, entry in zip(read[1:], made.prompt_logprobs[1:], strict=True)]
        print(json.dumps({"read": read, "known": known, "written": list(made.outputs[0].token_ids)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
