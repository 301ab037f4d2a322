"""What the barrier costs, between threads and between processes, and what it will cost at scale."""
