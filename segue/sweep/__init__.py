"""A grid of runs on one machine: methods x datasets x seeds x settings, from one TOML file (docs/sweep.md)."""
