"""Networks, attention, explainers and metrics on plain tensors: knows no file format or path."""
