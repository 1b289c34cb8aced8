"""Settling, merging and joining, held against slow and obvious models."""
