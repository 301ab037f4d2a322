"""Proof of conversions: what pinned releases of other libraries store, beside what bnext says."""
