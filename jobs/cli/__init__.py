"""What the commands share: flags, messages and tables on a terminal."""
