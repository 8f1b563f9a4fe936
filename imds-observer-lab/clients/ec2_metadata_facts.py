"""What an application asks the ec2-metadata package for."""
from ec2_metadata import ec2_metadata

print(ec2_metadata.instance_id, ec2_metadata.instance_type, ec2_metadata.region, ec2_metadata.availability_zone)
