"""The database's layout, step by step; `service.store.migrate` says how to add a step."""
