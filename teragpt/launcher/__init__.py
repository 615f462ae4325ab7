"""Ranks as processes of a pod: the environment that tells each its place, their start, their signals and their end."""
