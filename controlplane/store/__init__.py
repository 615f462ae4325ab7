"""What is remembered: tables, their migrations, the data folder's lock, and the one writer. It knows no cluster."""
