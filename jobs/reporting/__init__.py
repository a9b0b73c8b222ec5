"""Results of runs as figures, tables, pages, sounds and samples."""
