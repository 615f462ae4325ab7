"""Brings what is observed and what is wanted together: one thread that writes phases. It knows no HTTP and no user."""
