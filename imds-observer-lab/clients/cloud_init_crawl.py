"""cloud-init's own data source for EC2, as it crawls at boot; without the rest of cloud-init, which would set the machine up."""
import sys

sys.path.insert(0, sys.argv[1])

from cloudinit import helpers
from cloudinit.sources import DataSourceEc2

source = DataSourceEc2.DataSourceEc2({}, None, helpers.Paths({}))
# Else it asks DMI where it is.
source._cloud_name = "aws"
print(sorted(source.crawl_metadata()))
