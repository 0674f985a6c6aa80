"""The service over HTTP: routes over a queue, behind a gate. Imports no torch."""
