"""The command line: one file for one subcommand."""
