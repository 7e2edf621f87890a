"""How the library speaks to Postgres: pool and sessions, errors of the driver, the change feed, the schema."""
