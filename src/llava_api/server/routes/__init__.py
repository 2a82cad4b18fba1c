"""One file for one group of addresses."""
