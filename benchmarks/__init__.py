"""Speed and memory of Segue, measured beside the machine it runs on; `make bench` runs all of it."""
