"""One address for several servers: requests are passed on by their model, byte for byte."""
