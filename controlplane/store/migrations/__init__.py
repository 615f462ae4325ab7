"""The database's history, one revision a file. Revisions never import the tables: those change, a revision does not."""
