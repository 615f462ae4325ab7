"""HTTP: one file a noun, thin over the services. It decides nothing about runs."""
