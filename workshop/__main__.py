import os
import sys

from workshop.cli import main

code = main()
sys.stdout.flush()
sys.stderr.flush()
# Everything is closed. An ordinary exit would still wait half a second for the monitors that PyMongo has stopped.
os._exit(code)
