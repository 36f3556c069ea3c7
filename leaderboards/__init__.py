"""Reports in, tables out; and published numbers with their sources."""
