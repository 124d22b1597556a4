"""Run by Alembic: the steps go into the one transaction of the connection that the caller has opened."""

from alembic import context

from service.store.tables import Row

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Row.metadata,
    transactional_ddl=True,
)
context.run_migrations()
