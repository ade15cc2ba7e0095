//! The client's stream, with patience for slow clients, and an end to it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::server::TlsStream;

use crate::pace::Pace;
use crate::socket::Accepted;
use crate::timer::LazyTimer;

/// How long a client may take to notice the end.
const GRACE: Duration = Duration::from_secs(2);

/// A client's stream, with TLS or without.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {
    /// When it is dropped, the client shall not take that for an orderly end.
    fn spoil(&self);
}

impl Stream for Accepted {
    fn spoil(&self) {
        Accepted::spoil(self);
    }
}

impl Stream for TlsStream<Accepted> {
    /// The end of TLS is not announced, and that is enough.
    fn spoil(&self) {}
}

/// A stream that gives up on a client that takes nothing of what is written, and that, once shut
/// down, reads and forgets what the client still sends, for a short while.
/// Without that, bytes that nobody read make the kernel answer with a reset, which can overtake the
/// answer: a client refused in the middle of an upload would not learn why.
pub(crate) struct Linger<T> {
    io: T,
    /// At which the client takes what is written.
    pace: Pace,
    gave_up: bool,
    closing: Option<LazyTimer>,
    ended: bool,
}

impl<T> Linger<T> {
    pub(crate) fn new(io: T, pace: Pace) -> Self {
        Linger { io, pace, gave_up: false, closing: None, ended: false }
    }

    /// Whether the client took nothing for too long.
    pub(crate) fn gave_up(&self) -> bool {
        self.gave_up
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
        self.at_pace(cx, finished.map_ok(|()| 0)).map_ok(drop)
    }

    /// Fails a write of a client that takes too little.
    fn at_pace(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(written) => {
                self.pace.went_on(*written.as_ref().unwrap_or(&0));
                Poll::Ready(written)
            }
            Poll::Pending => {
                ready!(self.pace.poll_wait(cx));
                self.gave_up = true;
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
        }
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
        self.at_pace(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.at_pace(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        self.at_pace(cx, flushed.map_ok(|()| 0)).map_ok(drop)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.closing.is_none() {
            // With TLS there is something to be written still.
            let shut = Pin::new(&mut this.io).poll_shutdown(cx);
            ready!(this.at_pace(cx, shut.map_ok(|()| 0)))?;
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
    use std::num::NonZeroU64;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::Instant;

    use super::*;

    fn patient() -> Pace {
        Pace::new(Duration::from_secs(60), None)
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_even_take_the_end_is_given_up() {
        let (_client, server) = duplex(16);
        let mut server = Linger::new(tokio::io::BufWriter::new(server), patient());
        server.write_all(&[0; 100]).await.unwrap();
        let begin = Instant::now();
        let error = server.shutdown().await.unwrap_err();
        assert_eq!((error.kind(), begin.elapsed().as_secs()), (io::ErrorKind::TimedOut, 60));
    }

    #[tokio::test(start_paused = true)]
    async fn shutdown_waits_for_the_client_but_not_forever() {
        let (mut client, server) = duplex(16);
        let mut server = Linger::new(server, patient());
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
        let mut server = Linger::new(tokio::io::BufWriter::new(server), patient());
        server.write_all(&[0; 100]).await.unwrap();
        let begin = Instant::now();
        let error = server.flush().await.unwrap_err();
        assert_eq!((error.kind(), begin.elapsed().as_secs()), (io::ErrorKind::TimedOut, 60));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_a_trickle_is_given_up() {
        let (mut client, server) = duplex(16);
        let mut server = Linger::new(server, Pace::new(Duration::from_secs(60), NonZeroU64::new(4)));
        let begin = Instant::now();
        let reading = async {
            loop {
                tokio::time::sleep(Duration::from_secs(10)).await;
                client.read_exact(&mut [0; 20]).await.unwrap();
            }
        };
        let error = tokio::select! {
            biased;
            written = server.write_all(&[0; 1000]) => written.unwrap_err(),
            () = reading => unreachable!(),
        };
        // Every ten seconds twenty bytes make up for five.
        assert_eq!((error.kind(), begin.elapsed().as_secs()), (io::ErrorKind::TimedOut, 110));
        assert!(server.gave_up());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_given_up() {
        let (mut client, server) = duplex(16);
        let mut server = Linger::new(server, patient());
        let begin = Instant::now();
        let error = server.write_all(&[0; 100]).await.unwrap_err();
        assert_eq!((error.kind(), begin.elapsed().as_secs()), (io::ErrorKind::TimedOut, 60));
        client.read_exact(&mut [0; 16]).await.unwrap();
    }
}
