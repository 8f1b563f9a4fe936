//! `/metrics`, `/healthz` and `/readyz` over HTTP.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::Listener;
use prometheus_client::registry::Registry;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Shared, exposition};

/// The pipeline comes round ten times a second; silence for as long as this means that it is stuck.
const STUCK: Duration = Duration::from_secs(10);
/// Longest life of a connection: nobody keeps a place for ever by saying nothing.
const MAX_CONNECTION: Duration = Duration::from_secs(120);

struct Served {
    shared: Arc<Shared>,
    registry: Registry,
}

pub(super) fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .with_context(|| format!("listen for metrics on {address} (choose another with --metrics)"))
}

/// Returns the address that it listens on.
pub(super) fn start(listener: TcpListener, shared: &Arc<Shared>) -> anyhow::Result<SocketAddr> {
    listener
        .set_nonblocking(true)
        .context("make the metrics' listener non-blocking")?;
    let bound = listener.local_addr().context("ask where metrics are served")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .context("start the metrics' server")?;
    let served = Arc::new(Served {
        shared: Arc::clone(shared),
        registry: exposition::registry(shared),
    });
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(served);
    let connections = shared.connections;
    std::thread::Builder::new()
        .name("metrics".to_owned())
        .spawn(move || {
            let result = runtime.block_on(async {
                let listener = Bounded {
                    inner: tokio::net::TcpListener::from_std(listener)?,
                    places: Arc::new(Semaphore::new(connections)),
                };
                axum::serve(listener, router).await
            });
            if let Err(error) = result {
                tracing::error!("metrics are no longer served: {error}");
            }
        })
        .context("start the metrics' thread")?;
    Ok(bound)
}

async fn metrics(State(served): State<Arc<Served>>, headers: HeaderMap) -> Response {
    let Ok(openmetrics) = exposition::openmetrics(&served.registry) else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let wants_openmetrics = headers.get_all(header::ACCEPT).iter().any(|accept| {
        accept
            .to_str()
            .is_ok_and(|accept| accept.contains("application/openmetrics-text"))
    });
    let (kind, body) = if wants_openmetrics {
        (
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            openmetrics,
        )
    } else {
        (
            "text/plain; version=0.0.4; charset=utf-8",
            exposition::prometheus(&openmetrics),
        )
    };
    ([(header::CONTENT_TYPE, HeaderValue::from_static(kind))], body).into_response()
}

/// Whether the pipeline comes round.
async fn healthz(State(served): State<Arc<Served>>) -> Response {
    let alive = Duration::from_millis(served.shared.alive_ms.load(Ordering::Relaxed));
    let silent = served.shared.begin.elapsed().saturating_sub(alive);
    if silent > STUCK {
        let text = format!("the pipeline has not come round for {} s\n", silent.as_secs());
        return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    }
    "ok\n".into_response()
}

/// Whether the hooks are attached.
async fn readyz(State(served): State<Arc<Served>>) -> Response {
    if served.shared.ready.load(Ordering::Relaxed) {
        "ready\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not attached yet\n").into_response()
    }
}

/// A listener that takes up only so many connections, and none for ever.
struct Bounded {
    inner: tokio::net::TcpListener,
    places: Arc<Semaphore>,
}

impl Listener for Bounded {
    type Io = Placed;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Placed, SocketAddr) {
        let place = loop {
            if let Ok(place) = Arc::clone(&self.places).acquire_owned().await {
                break place;
            }
        };
        let (stream, address) = Listener::accept(&mut self.inner).await;
        (Placed::new(stream, place), address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }
}

mod placed {
    //! A connection that holds its place until it ends or its time is up.

    use std::future::Future;
    use std::io;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
    use tokio::time::{Sleep, sleep};

    use super::{MAX_CONNECTION, OwnedSemaphorePermit, TcpStream};

    pub(super) struct Placed {
        stream: TcpStream,
        end: Pin<Box<Sleep>>,
        _place: OwnedSemaphorePermit,
    }

    impl Placed {
        pub(super) fn new(stream: TcpStream, place: OwnedSemaphorePermit) -> Self {
            Self {
                stream,
                end: Box::pin(sleep(MAX_CONNECTION)),
                _place: place,
            }
        }

        fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
            match self.end.as_mut().poll(cx) {
                Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
                Poll::Pending => Ok(()),
            }
        }
    }

    impl AsyncRead for Placed {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            self.check(cx)?;
            Pin::new(&mut self.stream).poll_read(cx, buf)
        }
    }

    impl AsyncWrite for Placed {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            self.check(cx)?;
            Pin::new(&mut self.stream).poll_write(cx, bytes)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_shutdown(cx)
        }
    }
}

use placed::Placed;
