"""What several processes share: ranks and sums, locks, shards of work, worker pools, devices."""
