// aws-sdk 2.560.0, from before IMDSv2.
const AWS = require('aws-sdk');

const load = (left) => {
  if (left === 0) return;
  new AWS.EC2MetadataCredentials().get((error) => {
    console.log(error ? error.code : 'has credentials');
    load(left - 1);
  });
};
load(Number(process.argv[2] ?? 1));
