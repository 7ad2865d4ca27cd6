"""Build optimizers, schedules and losses."""
