//! Stamps responses with a header that tells how long the gateway and the upstream took.
//! Takes `grants: { clock: true }`.

use portcullis_guest::*;

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    header: String,
}

struct StampResponse {
    header: String,
    began: Option<u64>,
}

impl Policy for StampResponse {
    type Config = Config;

    fn new(config: Config) -> Result<Self> {
        Ok(StampResponse { header: config.header, began: None })
    }

    fn on_request(&mut self, _: &Exchange) -> Result<Verdict> {
        self.began = Some(now()?);
        proceed()
    }

    fn on_response(&mut self, exchange: &Exchange) -> Result<Verdict> {
        let now = now()?;
        let took = now.saturating_sub(self.began.unwrap_or(now));
        exchange.response().set_header(&self.header, format!("{took} ms"))?;
        proceed()
    }
}

export!(StampResponse: on_request, on_response);
