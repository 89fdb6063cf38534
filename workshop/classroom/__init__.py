"""A class on one machine: a JupyterHub, and for each learner a home, accounts on the servers and sandboxes."""
