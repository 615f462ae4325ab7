"""Where attempts execute: one small protocol (`base`) and its implementations, each a package of its own."""
