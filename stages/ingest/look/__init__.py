"""Looking: which kinds of sources files are, told from their names and a peek at few of them."""
