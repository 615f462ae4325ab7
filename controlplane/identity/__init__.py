"""Who calls, by what they show: an issuer's tokens, tokens of ours, a proxy's word. It knows no run and no server."""
