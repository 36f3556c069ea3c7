"""The vocabulary and the evaluation: nouns, engines, judges, statistics, store, sandbox, gate."""
