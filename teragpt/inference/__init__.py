"""What is done with a trained model: text from it, in a terminal or over HTTP, and its loss on held-out text."""
