"""Alembic's entry: it works on the connection, and in the transaction, that `upgrade` was given."""

from alembic import context

from proxy.ledger.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata,
                  transactional_ddl=False, render_as_batch=True)
context.run_migrations()
