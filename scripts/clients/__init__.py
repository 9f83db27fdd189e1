"""What `check_clients.py` runs pruned pipelines in: a browser, and a pipeline of optimum."""
