# The AWS SDK for Ruby: credentials once, and again for each line of input.
require 'aws-sdk-core'

$stdout.sync = true
credentials = Aws::InstanceProfileCredentials.new
puts credentials.set? ? 'has credentials' : 'has no credentials'
while $stdin.gets
  credentials.refresh!
  puts credentials.set? ? 'has credentials' : 'has no credentials'
end
