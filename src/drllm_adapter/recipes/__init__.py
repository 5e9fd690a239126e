"""Recipes: YAML files with a section of options for each command, read with `--config`."""
