//! Stamps responses with a header that tells how long the gateway and the upstream took.

use portcullis_guest::*;

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    header: String,
}

struct StampResponse {
    header: String,
    began: u64,
}

impl Policy for StampResponse {
    type Config = Config;

    fn new(config: Config) -> Result<Self> {
        Ok(StampResponse { header: config.header, began: now() })
    }

    fn on_request(&mut self, _: &Exchange) -> Result<Verdict> {
        self.began = now();
        proceed()
    }

    fn on_response(&mut self, exchange: &Exchange) -> Result<Verdict> {
        let took = now().saturating_sub(self.began);
        exchange.response().set_header(&self.header, format!("{took} ms"))?;
        proceed()
    }
}

export!(StampResponse: on_request, on_response);
