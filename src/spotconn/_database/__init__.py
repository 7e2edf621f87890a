"""Access to Postgres: pools, sessions, errors of the driver, rows, the change feed and the schema."""
