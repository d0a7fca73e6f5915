"""Small self-made data sets and the script that makes them; see DATASHEET.md here."""
