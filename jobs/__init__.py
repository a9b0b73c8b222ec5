"""Programs: parse, call one thing, print."""
