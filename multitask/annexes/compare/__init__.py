"""Compare the results of several runs."""
