// The provider of the AWS SDK for JavaScript v3: a fresh token at each call.
const { fromInstanceMetadata } = require('@aws-sdk/credential-provider-imds');

const times = Number(process.argv[2] ?? 1);
(async () => {
  for (let n = 0; n < times; n += 1) {
    try {
      await fromInstanceMetadata()();
      console.log('has credentials');
    } catch (error) {
      console.log(error.name);
    }
  }
})();
