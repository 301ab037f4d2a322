"""What suites have in common: command lines, turns, documents of results, promises, tables."""
