"""AdamW and Muon over sharded parameters, in fp32 and in bf16."""
