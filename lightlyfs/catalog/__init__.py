"""Knows which samples a dataset has, under which paths, and how fresh that knowledge is."""
