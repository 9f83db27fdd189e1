"""The clients in which `check_clients.py` runs pruned pipelines: a browser, and a pipeline of optimum."""
