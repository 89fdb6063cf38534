"""JupyterHub's configuration file, run by JupyterHub itself: see hub.py."""

import os

from workshop.classroom.hub import configure

configure(get_config(), os.environ["WORKSHOP_CLASS_KIND"])  # noqa: F821
