//! Connections of the management API and of the metrics: so many at most. Each is a descriptor and
//! memory that a host's queue may need, and a script that forgets to close its own must not cost it.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tokio_stream::Stream;
use tonic::transport::server::{Connected, TcpConnectInfo};

/// How long to wait after the kernel had no descriptor or no memory for a connection. It says so
/// again at once, and there is no event when it has.
const PAUSE: Duration = Duration::from_millis(100);

/// A listener that closes what comes beyond its limit.
#[derive(Debug)]
pub(crate) struct Admission {
    listener: TcpListener,
    purpose: &'static str,
    connections_max: usize,
    places: Arc<Semaphore>,
    /// The log has been told that all places are taken.
    full: bool,
    paused: Option<Pin<Box<Sleep>>>,
}

impl Admission {
    pub(crate) fn new(
        listener: TcpListener,
        purpose: &'static str,
        connections_max: usize,
    ) -> Self {
        Self {
            listener,
            purpose,
            connections_max,
            places: Arc::new(Semaphore::new(connections_max)),
            full: false,
            paused: None,
        }
    }

    fn poll_admit(&mut self, cx: &mut Context<'_>) -> Poll<(Admitted, SocketAddr)> {
        loop {
            if let Some(pause) = &mut self.paused {
                ready!(pause.as_mut().poll(cx));
                self.paused = None;
            }
            match ready!(self.listener.poll_accept(cx)) {
                Ok((stream, peer)) => {
                    if let Some(admitted) = self.admit(stream) {
                        return Poll::Ready((admitted, peer));
                    }
                }
                // Its peer was gone before we came.
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    tracing::warn!(purpose = self.purpose, %error, "no connection taken");
                    self.paused = Some(Box::pin(tokio::time::sleep(PAUSE)));
                }
            }
        }
    }

    /// Gives the connection a place, or closes it.
    fn admit(&mut self, stream: TcpStream) -> Option<Admitted> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok();
        if place.is_none() && !self.full {
            tracing::warn!(
                purpose = self.purpose,
                connections_max = self.connections_max,
                "connection closed: there are too many"
            );
        }
        self.full = place.is_none();
        // Answers leave at once, not when the caller has confirmed the one before.
        let _only_slower = stream.set_nodelay(true);
        Some(Admitted {
            stream,
            _place: place?,
        })
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset
    )
}

/// What the management API is served from.
impl Stream for Admission {
    type Item = io::Result<Admitted>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let (admitted, _) = ready!(self.get_mut().poll_admit(cx));
        Poll::Ready(Some(Ok(admitted)))
    }
}

/// What the metrics are served from.
impl axum::serve::Listener for Admission {
    type Io = Admitted;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Admitted, SocketAddr) {
        poll_fn(|cx| self.poll_admit(cx)).await
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that has a place for as long as it is open.
#[derive(Debug)]
pub(crate) struct Admitted {
    stream: TcpStream,
    _place: OwnedSemaphorePermit,
}

impl Connected for Admitted {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Admitted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Admitted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio_stream::StreamExt;

    use super::*;

    #[tokio::test]
    async fn connection_beyond_the_limit_is_closed_and_a_place_is_used_again() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut admission = Admission::new(listener, "test", 2);
        let connect = || async { TcpStream::connect(address).await.unwrap() };
        let mut clients = vec![connect().await, connect().await];
        let mut inside = Vec::new();
        for _ in 0..2 {
            inside.push(admission.next().await.unwrap().unwrap());
        }
        let mut refused = connect().await;
        let mut buffer = [0];
        tokio::select! {
            admitted = admission.next() => panic!("a third is in: {admitted:?}"),
            read = refused.read(&mut buffer) => assert_eq!(read.unwrap_or(0), 0),
        }
        drop(inside.pop());
        clients.push(connect().await);
        inside.push(admission.next().await.unwrap().unwrap());
        assert_eq!(inside.len(), 2);
    }
}
