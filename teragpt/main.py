"""The import that the library's first users know: `from teragpt.main import TeraGPT`."""

from teragpt.model import TeraGPT

__all__ = ["TeraGPT"]
