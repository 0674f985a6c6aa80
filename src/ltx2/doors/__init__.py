"""The ways in: the command line and the benchmark. Nobody imports a door."""
