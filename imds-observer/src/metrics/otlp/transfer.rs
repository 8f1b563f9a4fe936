//! One request to the collector, on a connection of its own, within a time, and never to IMDS.

use std::fmt;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST, USER_AGENT};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

/// Limit of bytes read from a response.
const MAX_ANSWER: usize = 64 << 10;

/// Where to.
pub(super) struct Endpoint {
    host: String,
    port: u16,
    /// Without a slash at its end.
    path: String,
    imds: Vec<IpAddr>,
    runtime: Runtime,
}

/// Why nothing was taken.
#[derive(Debug)]
pub(super) enum Failure {
    /// The same may be taken later.
    Later(String),
    /// The same never will be.
    Never(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Later(why) | Self::Never(why)) = self;
        f.write_str(why)
    }
}

impl Endpoint {
    pub(super) fn new(url: &str, imds: Vec<IpAddr>) -> anyhow::Result<Self> {
        let uri: Uri = url.parse().context("not a URL such as http://127.0.0.1:4318")?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => {
                bail!(
                    "TLS is not supported: send to a collector on this host or network, and let that collector encrypt"
                )
            }
            _ => bail!("not a URL such as http://127.0.0.1:4318"),
        }
        let authority = uri.authority().context("the URL has no host")?;
        if authority.as_str().contains('@') || uri.query().is_some() {
            bail!("the URL may contain only a host, a port and a path: http://127.0.0.1:4318");
        }
        // Brackets belong to the URL.
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            bail!("the URL has no host");
        }
        let endpoint = Self {
            host: host.to_owned(),
            port: authority.port_u16().unwrap_or(4318),
            path: uri.path().trim_end_matches('/').to_owned(),
            imds,
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_io()
                .enable_time()
                .build()
                .context("start the transfer runtime")?,
        };
        if let Ok(address) = endpoint.host.parse::<IpAddr>()
            && endpoint.is_forbidden(address)
        {
            bail!("{address} is link-local, like IMDS: sending there is not allowed");
        }
        Ok(endpoint)
    }

    /// The configured addresses of IMDS, and all link-local addresses of an instance: no collector is there.
    fn is_forbidden(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.imds.iter().any(|imds| imds.to_canonical() == address)
            || match address {
                IpAddr::V4(v4) => v4.is_link_local(),
                IpAddr::V6(v6) => v6.segments()[..2] == [0xfd00, 0x0ec2],
            }
    }

    fn resolve(&self) -> Result<Vec<SocketAddr>, Failure> {
        let addresses: Vec<SocketAddr> = (self.host.as_str(), self.port)
            .to_socket_addrs()
            .map_err(|error| Failure::Later(format!("resolve {}: {error}", self.host)))?
            .filter(|address| !self.is_forbidden(address.ip()))
            .collect();
        if addresses.is_empty() {
            let why = "resolves only to link-local addresses, like those of IMDS: sending there is not allowed";
            return Err(Failure::Later(format!("{} {why}", self.host)));
        }
        Ok(addresses)
    }

    /// Sends, and returns the body of the answer.
    pub(super) fn send(&self, path: &str, body: Vec<u8>, patience: Duration) -> Result<Bytes, Failure> {
        // May block: this thread has no other work.
        let addresses = self.resolve()?;
        self.runtime.block_on(async {
            tokio::time::timeout(patience, self.exchange(path, body, &addresses))
                .await
                .unwrap_or_else(|_| Err(Failure::Later(format!("no answer within {} s", patience.as_secs()))))
        })
    }

    async fn exchange(&self, path: &str, body: Vec<u8>, addresses: &[SocketAddr]) -> Result<Bytes, Failure> {
        let later = |error: &dyn fmt::Display| Failure::Later(error.to_string());
        let stream = TcpStream::connect(addresses).await.map_err(|error| later(&error))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| later(&error))?;
        let request = Request::post(format!("{}/{path}", self.path))
            .header(HOST, self.to_string())
            .header(CONTENT_TYPE, "application/x-protobuf")
            .header(USER_AGENT, concat!("imds-observer/", env!("CARGO_PKG_VERSION")))
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| Failure::Never(error.to_string()))?;
        let answer = async {
            let response = sender.send_request(request).await.map_err(|error| later(&error))?;
            let status = response.status();
            if !status.is_success() {
                return Err(refused(status));
            }
            let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
            // The collector has accepted the request, even if the response's body is broken.
            Ok(body.map(http_body_util::Collected::to_bytes).unwrap_or_default())
        };
        tokio::pin!(answer);
        // The connection is driven by hand, and dropped with the answer: nothing of it outlives this call.
        tokio::select! {
            result = &mut answer => result,
            ended = connection => match ended {
                Err(error) => Err(later(&error)),
                Ok(()) => answer.await,
            },
        }
    }
}

/// Status codes for which OTLP specifies a retry; all others are final.
fn refused(status: StatusCode) -> Failure {
    let why = format!("status {status}");
    match status.as_u16() {
        429 | 502 | 503 | 504 => Failure::Later(why),
        _ => Failure::Never(why),
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            return write!(f, "[{}]:{}", self.host, self.port);
        }
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({self}{})", self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(url: &str) -> anyhow::Result<Endpoint> {
        Endpoint::new(url, vec!["10.1.2.3".parse().unwrap()])
    }

    #[test]
    fn urls_are_taken_apart() {
        for (url, shown, path) in [
            ("http://collector:4318", "collector:4318", ""),
            ("http://collector", "collector:4318", ""),
            ("http://[::1]:9/otlp/", "[::1]:9", "/otlp"),
        ] {
            let endpoint = endpoint(url).unwrap();
            assert_eq!(endpoint.to_string(), shown);
            assert_eq!(endpoint.path, path);
        }
        for wrong in [
            "",
            "collector:4318",
            "/v1",
            "https://collector:4318",
            "grpc://collector",
            "http://user:secret@collector",
            "http://collector/?a=b",
            "http://:4318",
        ] {
            assert!(endpoint(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn imds_is_never_sent_to() {
        for imds in [
            "169.254.169.254",
            "169.254.170.2",
            "[fd00:ec2::254]",
            "[::ffff:169.254.169.254]",
            "10.1.2.3",
            "[::ffff:10.1.2.3]",
        ] {
            let error = endpoint(&format!("http://{imds}:4318")).unwrap_err().to_string();
            assert!(error.contains("sending there is not allowed"), "{imds}: {error}");
        }
        // Whatever the system's resolver makes of numbers, what comes out is looked at again.
        for numbers in ["2852039166", "0xa9fea9fe", "169.16689662"] {
            let endpoint = endpoint(&format!("http://{numbers}:80")).unwrap();
            let failure = endpoint.resolve().unwrap_err();
            assert!(matches!(failure, Failure::Later(_)), "{failure}");
        }
    }

    #[test]
    fn some_refusals_are_for_good() {
        assert!(matches!(refused(StatusCode::SERVICE_UNAVAILABLE), Failure::Later(_)));
        assert!(matches!(refused(StatusCode::TOO_MANY_REQUESTS), Failure::Later(_)));
        assert!(matches!(refused(StatusCode::BAD_REQUEST), Failure::Never(_)));
        assert!(matches!(refused(StatusCode::FOUND), Failure::Never(_)), "not followed");
    }
}
