//! `replay`: recorded requests through the configuration and another one, and which end in another way.

use std::process::ExitCode;

use portcullis_control::{Replayed, replay as replayed, samples};

use super::explain::columns;
use super::{Failure, ReplayOptions};
use crate::places::{self, Configuration};
use crate::{kinds, process, say};

/// `portcullis replay`
pub(super) fn replay(options: &ReplayOptions) -> Result<ExitCode, Failure> {
    process::install_crypto();
    let config = match places::configuration(options.config.clone()) {
        Configuration::File(path) | Configuration::Quickstart(path) => path,
        Configuration::Embedded => {
            return Err(Failure::Usage("there is no configuration; name it with `--config`".to_owned()));
        }
    };
    let file = match &options.file {
        Some(file) => file.clone(),
        None => {
            let loaded = portcullis_config::load(&config).map_err(Failure::Files)?;
            let replay = loaded.config.replay.as_ref();
            let file = replay.map(|replay| loaded.resolve(&replay.file));
            file.ok_or_else(|| {
                let config = config.display();
                Failure::Usage(format!("`{config}` records no requests (`replay`), and no file is named"))
            })?
        }
    };
    let samples = samples(&file).map_err(Failure::Run)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::Run(error.to_string()))?;
    let registry = kinds::registry();
    let compared = replayed(&config, &options.against, &registry, &samples);
    let compared = runtime.block_on(compared).map_err(Failure::Files)?;
    say::result(&if options.json { format!("{:#}", serde_json::json!(compared)) } else { shown(&compared) });
    Ok(if compared.flips.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The requests that end in another way, and how many there are.
fn shown(replayed: &Replayed) -> String {
    let mut text = String::new();
    if !replayed.flips.is_empty() {
        let head = ["time", "id", "request", "so far", "then"].map(str::to_owned);
        let rows = replayed.flips.iter().map(|flip| {
            [
                flip.time.clone(),
                flip.id.clone(),
                flip.request.clone(),
                flip.before.to_string(),
                flip.after.to_string(),
            ]
        });
        text = columns(&[head].into_iter().chain(rows).collect::<Vec<_>>());
        text.push('\n');
    }
    text.push_str(&format!("{} requests, {} end in another way", replayed.requests, replayed.flips.len()));
    if replayed.without_body > 0 {
        text.push_str(&format!("; {} were tried without their bodies", replayed.without_body));
    }
    text
}
