"""Gets an access token as Google's client libraries do on Compute Engine."""
import sys

import google.auth
import google.auth.exceptions
import google.auth.transport.requests

try:
    credentials, _ = google.auth.default()
    credentials.refresh(google.auth.transport.requests.Request())
    print("has a token" if credentials.token else "has no token")
except google.auth.exceptions.GoogleAuthError as error:
    print(type(error).__name__, file=sys.stderr)
    sys.exit(1)
