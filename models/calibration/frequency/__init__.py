"""Readers of class-frequency files, a module for each family of formats; `frequencies` beside it is the way in."""
