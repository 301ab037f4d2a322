"""The tests of bnext: a package, so that its files can share reference, cases and comparisons."""
