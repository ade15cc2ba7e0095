//! The client's stream, with patience for slow clients, and an end to it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::timer::LazyTimer;

/// How long a client may take to notice the end.
const GRACE: Duration = Duration::from_secs(2);

/// A client's stream, with TLS or without.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {
    /// When it is dropped, the client shall not take that for an orderly end.
    fn spoil(&self);
}

impl Stream for TcpStream {
    fn spoil(&self) {
        // Without it the end is as it would be without this.
        let _ = SockRef::from(self).set_linger(Some(Duration::ZERO));
    }
}

impl Stream for TlsStream<TcpStream> {
    /// The end of TLS is not announced, and that is enough.
    fn spoil(&self) {}
}

/// A stream that gives up on a client that takes nothing of what is written, and that, once shut
/// down, reads and forgets what the client still sends, for a short while.
/// Without that, bytes that nobody read make the kernel answer with a reset, which can overtake the
/// answer: a client refused in the middle of an upload would not learn why.
pub(crate) struct Linger<T> {
    io: T,
    write_timeout: Duration,
    /// Runs while a write waits.
    write_timer: LazyTimer,
    writing: bool,
    closing: Option<LazyTimer>,
    ended: bool,
}

impl<T> Linger<T> {
    pub(crate) fn new(io: T, write_timeout: Duration) -> Self {
        let write_timer = LazyTimer::new();
        Linger { io, write_timeout, write_timer, writing: false, closing: None, ended: false }
    }

    pub(crate) fn get_ref(&self) -> &T {
        &self.io
    }

    /// Ends what is written. What the client still sends can be read.
    pub(crate) fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>
    where
        T: AsyncWrite + Unpin,
    {
        let finished = Pin::new(&mut self.io).poll_shutdown(cx);
        self.within_timeout(cx, finished)
    }

    /// Fails a write that has waited too long.
    fn within_timeout<R>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<R>>,
    ) -> Poll<io::Result<R>> {
        if written.is_ready() {
            self.writing = false;
            return written;
        }
        if !std::mem::replace(&mut self.writing, true) {
            self.write_timer.start(self.write_timeout);
        }
        self.write_timer.poll_expired(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Linger<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = ready!(Pin::new(&mut self.io).poll_read(cx, buf));
        self.ended = result.is_err() || buf.filled().len() == before && buf.remaining() > 0;
        Poll::Ready(result)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Linger<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.within_timeout(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.within_timeout(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        self.within_timeout(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.closing.is_none() {
            ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
            let mut timer = LazyTimer::new();
            timer.start(GRACE);
            this.closing = Some(timer);
        }
        let mut scratch = [0; 4096];
        while !this.ended {
            let mut buf = ReadBuf::new(&mut scratch);
            match Pin::new(&mut this.io).poll_read(cx, &mut buf) {
                Poll::Ready(result) => this.ended = result.is_err() || buf.filled().is_empty(),
                Poll::Pending => {
                    let Some(timer) = &mut this.closing else { break };
                    ready!(timer.poll_expired(cx));
                    break;
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn shutdown_waits_for_the_client_but_not_forever() {
        let (mut client, server) = duplex(16);
        let mut server = Linger::new(server, Duration::from_secs(60));
        let begin = Instant::now();
        let reading = async {
            client.write_all(&[0; 100]).await.unwrap();
            let mut rest = Vec::new();
            client.read_to_end(&mut rest).await.unwrap();
        };
        let (closed, ()) = tokio::join!(server.shutdown(), reading);
        assert!(closed.is_ok() && begin.elapsed() == GRACE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_of_what_is_buffered_is_given_up() {
        let (_client, server) = duplex(16);
        let mut server = Linger::new(tokio::io::BufWriter::new(server), Duration::from_secs(60));
        server.write_all(&[0; 100]).await.unwrap();
        let begin = Instant::now();
        let error = server.flush().await.unwrap_err();
        assert_eq!((error.kind(), begin.elapsed().as_secs()), (io::ErrorKind::TimedOut, 60));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_given_up() {
        let (mut client, server) = duplex(16);
        let mut server = Linger::new(server, Duration::from_secs(60));
        let begin = Instant::now();
        let error = server.write_all(&[0; 100]).await.unwrap_err();
        assert_eq!((error.kind(), begin.elapsed().as_secs()), (io::ErrorKind::TimedOut, 60));
        client.read_exact(&mut [0; 16]).await.unwrap();
    }
}
