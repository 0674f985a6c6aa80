"""Who waits: the durable queue of jobs, the worker that takes from it, and the courier of its webhooks. No torch."""
