"""What has a machine in it: counters that run the net, and modules that only exist by running."""
