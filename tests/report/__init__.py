"""Tests of `segue.report`, a package so that they can share `make_runs`."""
