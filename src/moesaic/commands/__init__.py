"""The command line's verbs in groups; `moesaic.cli` puts them together."""
