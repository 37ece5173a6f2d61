"""The commands, each a thin layer over what does the work; what is heavy is imported where it is needed."""
