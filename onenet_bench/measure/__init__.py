"""What has a machine in it: counters and latencies of nets that run, memory, and modules that only exist by running."""
