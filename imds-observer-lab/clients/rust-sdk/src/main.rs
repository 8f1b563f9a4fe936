//! Loads credentials with the SDK's own provider, then once more for each line on standard input.

use aws_config::imds::Client;
use aws_config::imds::credentials::ImdsCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_credential_types::provider::ProvideCredentials as _;
use tokio::io::{AsyncBufReadExt as _, BufReader};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let http = aws_smithy_http_client::Builder::new().build_http();
    let config = ProviderConfig::without_region().with_http_client(http);
    let client = Client::builder().configure(&config).build();
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    loop {
        // The client keeps its token; credentials are loaded again, as after their expiry.
        let provider = ImdsCredentialsProvider::builder()
            .configure(&config)
            .imds_client(client.clone())
            .build();
        let loaded = provider.provide_credentials().await;
        println!("{}", if loaded.is_ok() { "has credentials" } else { "has no credentials" });
        if !matches!(lines.next_line().await, Ok(Some(_))) {
            break;
        }
    }
}
