//! Refuses requests whose path begins with one of the configured prefixes.

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
        match config.prefixes.iter().find(|prefix| !prefix.starts_with('/')) {
            Some(prefix) => Err(Error::new(format!("prefix `{prefix}` does not begin with a slash"))),
            None => Ok(BlockPath(config)),
        }
    }

    fn on_request(&mut self, exchange: &Exchange) -> Result<Verdict> {
        let path = exchange.request().path();
        if self.0.prefixes.iter().any(|prefix| path.starts_with(prefix)) {
            return deny(403, "block_path.prefix");
        }
        proceed()
    }
}

export!(BlockPath: on_request);
