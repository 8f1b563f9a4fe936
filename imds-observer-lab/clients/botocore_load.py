"""Loads credentials as an application does at its start: once, or `botocore_load.py TIMES PAUSE`, each time in a new session.

With a third argument it first waits for a line of input.
"""
import sys
import time

import botocore.session

times, pause = (int(sys.argv[1]), float(sys.argv[2])) if len(sys.argv) > 2 else (1, 0)
if len(sys.argv) > 3:
    sys.stdin.readline()
for number in range(times):
    if number:
        time.sleep(pause)
    credentials = botocore.session.get_session().get_credentials()
    print("has credentials" if credentials and credentials.access_key else "has no credentials", flush=True)
