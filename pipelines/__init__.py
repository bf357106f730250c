"""One module per step of the command line; the only room that knows both rooms below."""
