//! The benchmark's small policy in WebAssembly, the same as in `../contestants/policy.rhai`.

use portcullis_guest::*;

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    key: String,
}

struct RequireKey(Config);

impl Policy for RequireKey {
    type Config = Config;

    fn new(config: Config) -> Result<Self> {
        Ok(RequireKey(config))
    }

    fn on_request(&mut self, exchange: &Exchange) -> Result<Verdict> {
        if exchange.request().header("x-api-key").as_deref() != Some(&self.0.key) {
            return deny(403, "bench.key");
        }
        proceed()
    }

    fn on_response(&mut self, exchange: &Exchange) -> Result<Verdict> {
        exchange.response().set_header("x-policy", "passed")?;
        proceed()
    }
}

export!(RequireKey: on_request, on_response);
