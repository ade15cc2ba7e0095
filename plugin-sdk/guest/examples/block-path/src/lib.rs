//! Refuses requests for one of the configured paths and for what lies below it.

use portcullis_guest::*;

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    prefixes: Vec<String>,
}

struct BlockPath(Config);

impl Policy for BlockPath {
    type Config = Config;

    fn new(config: Config) -> Result<Self> {
        match config.prefixes.iter().position(|prefix| !prefix.starts_with('/')) {
            Some(at) => Err(Error::new(format!("prefixes[{at}]: does not begin with a slash"))),
            None => Ok(BlockPath(config)),
        }
    }

    fn on_request(&mut self, exchange: &Exchange) -> Result<Verdict> {
        let request = exchange.request();
        if self.0.prefixes.iter().any(|prefix| request.is_below(prefix)) {
            return deny(403, "block_path.prefix");
        }
        proceed()
    }
}

export!(BlockPath: on_request);
