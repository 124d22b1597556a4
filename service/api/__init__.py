"""Thin endpoints: they translate between HTTP and the rest of the service."""
