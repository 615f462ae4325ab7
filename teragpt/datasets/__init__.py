"""Prepared tokens where they lie: shards and what names them, blocks from afar, mixtures, batches on a device."""
