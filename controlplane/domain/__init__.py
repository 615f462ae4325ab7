"""What a run is: its words, its phases, its spec and its errors. It knows no database, no cluster and no HTTP."""
