"""Starting: a config for a folder that nobody has described. In: a URI, this machine. Out: a YAML file that runs."""
