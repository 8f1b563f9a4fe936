"""Gets an access token as Azure's SDK does on a virtual machine."""
import sys

from azure.core.exceptions import AzureError
from azure.identity import ManagedIdentityCredential

try:
    token = ManagedIdentityCredential().get_token("https://management.azure.com/.default")
    print("has a token" if token.token else "has no token")
except AzureError as error:
    print(type(error).__name__, file=sys.stderr)
    sys.exit(1)
