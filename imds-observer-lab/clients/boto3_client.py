"""An application with boto3: a client whose first call signs with the role's credentials."""
import boto3
from botocore.config import Config

config = Config(retries={"total_max_attempts": 1}, connect_timeout=1, region_name="us-east-1")
# Nobody listens there: only IMDS is in reach.
client = boto3.client("s3", endpoint_url="http://127.0.0.1:9", config=config)
try:
    client.list_buckets()
except Exception as error:
    print(type(error).__name__)
