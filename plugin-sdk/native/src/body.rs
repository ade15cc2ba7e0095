//! Bodies that pass chunk by chunk.

use bytes::Bytes;
use http::HeaderMap;

use crate::hook::PluginError;
use crate::reply::Reply;

/// What became of a chunk.
#[derive(Debug)]
pub enum Filtered {
    /// Send this on; empty to hold everything back for now.
    Pass(Bytes),
    /// End the exchange: a reply if no response has begun, else a reset.
    Refuse(Box<Reply>),
}

/// Sees one body of one exchange, chunk by chunk. It owns its state and shares nothing with the
/// exchange, because it moves with the body while response hooks may hold the exchange.
pub trait BodyFilter: Send {
    /// The next chunk, in order, as the previous filter of the chain left it.
    fn chunk(&mut self, chunk: Bytes) -> Result<Filtered, PluginError>;

    /// Trailers follow the body, of which all chunks have passed; [`end`](Self::end) comes next. What may not
    /// stand in trailers is removed from them afterwards. Default: as they are.
    fn trailers(&mut self, trailers: &mut HeaderMap) -> Result<(), PluginError> {
        let _ = trailers;
        Ok(())
    }

    /// The body has ended; what is passed here is sent before the end. Default: nothing.
    fn end(&mut self) -> Result<Filtered, PluginError> {
        Ok(Filtered::Pass(Bytes::new()))
    }
}
