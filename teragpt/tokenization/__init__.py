"""Text to tokens and back, by one class over any tokenizer's files."""
