"""Gets an access token as IBM's SDK does on a virtual server with a trusted profile."""
import sys

from ibm_cloud_sdk_core import ApiException
from ibm_cloud_sdk_core.token_managers.vpc_instance_token_manager import VPCInstanceTokenManager

try:
    print("has a token" if VPCInstanceTokenManager().get_token() else "has no token")
except ApiException as error:
    print(type(error).__name__, error.code, file=sys.stderr)
    sys.exit(1)
