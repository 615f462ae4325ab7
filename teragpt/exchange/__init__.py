"""What other libraries open, and what of theirs is opened: `transformers`, model cards, lm-evaluation-harness."""
