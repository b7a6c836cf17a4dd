"""The rooms of the report's page; `sdjax.report` puts them together."""
