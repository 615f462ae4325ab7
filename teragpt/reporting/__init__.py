"""What a run tells while it trains: lines, records, trackers' curves, and its GPUs' own sensors."""
