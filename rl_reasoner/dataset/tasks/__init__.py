"""dataset.tasks."""
