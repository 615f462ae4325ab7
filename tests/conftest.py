"""What every test relies on: signals as a terminal gives them."""

from __future__ import annotations

import signal

# A test run started in the background inherits ignored signals, and so would every process that it starts.
for _signal, _handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGQUIT, signal.SIG_DFL),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(_signal) == signal.SIG_IGN:
        signal.signal(_signal, _handler)
