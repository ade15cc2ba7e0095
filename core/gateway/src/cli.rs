//! The command line: what can be asked, and how each answer ends.
//!
//! Exit codes: 0 it worked, 1 it failed while running, 2 the command line or a file is wrong.

mod check;
mod explain;
mod interface;
mod jwt;
mod key;
mod new;
mod plugins;
mod replay;
mod shadow;
mod status;
mod test;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::styling::{AnsiColor, Styles};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use portcullis_config::Diagnostics;
use portcullis_wasm::Language;

use crate::{run, say};

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

const AFTER_HELP: &str = "\
Without a command, `run` is meant. Without a configuration, it is taken from $PORTCULLIS_CONFIG,
else from ./portcullis.yaml, else the quickstart is started: a gateway before a demo upstream,
with two scripts to play with.

Begin with:
  portcullis                     start the quickstart and follow what it prints
  portcullis check gateway.yaml  see everything that is wrong with a configuration
  portcullis plugins             see what plugins there are
  portcullis plugins cors        see how one is configured
  portcullis new script my-rule  write a policy that works, to be changed

Exit codes: 0 it worked, 1 it failed while running, 2 the command line or a file is wrong.";

/// An API security gateway that is programmed with plugins, scripts and WebAssembly.
#[derive(Debug, Parser)]
#[command(name = "portcullis", version, styles = STYLES, after_help = AFTER_HELP, max_term_width = 100)]
#[command(args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,

    /// The configuration file of `run`, when no command is given.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start the gateway and serve until it is told to stop.
    #[command(after_help = "\
Signals:
  SIGHUP           reload now, and open log files anew (after a rotation)
  SIGTERM, SIGINT  stop accepting, finish running requests for at most `drain`, end;
                   a second one ends at once
  SIGUSR2          start the program anew, hand the sockets over, and end like that once it serves

Every file that shapes behaviour is watched: a change applies by itself, as a whole, between two
requests. A file with an error changes nothing but the log and what `portcullis status` says. A
certificate, key, secret or list applies also while a script or the configuration has an error.

What applied last is kept in the state directory, apart from certificates, keys, secrets and lists.
`--last-good` serves it when a start finds an error, until the files are mended.

The execution log goes to standard error. $PORTCULLIS_LOG sets its level: `debug`, or
`warn,portcullis::reload=trace`.")]
    Run(RunOptions),

    /// Check a configuration and everything it names; print all errors at once.
    #[command(after_help = "\
Builds everything that `run` would build, plugins, scripts, modules and certificates included,
without opening a socket or touching a running gateway. Exit code 2 if there is an error.")]
    Check(CheckOptions),

    /// Run the tests of policies and configurations.
    #[command(after_help = "\
Tests are files beside what they are about: `x.test.yaml` beside `x.rhai`, `x.wasm` or `x.yaml`.
Without PATHS, those that belong to the configuration are run, as every reload runs them.
Exit code 1 if a test fails, 2 if a file is wrong.")]
    Test(TestOptions),

    /// Try another configuration on requests that were recorded, and tell which end in another way.
    #[command(after_help = "\
The gateway records requests where its configuration has `replay`. They are sent through both
configurations, on sockets that nobody else sees, before upstreams that answer as then, without
bodies. The latest 1000 are tried. Exit code 1 if one ends in another way.")]
    Replay(ReplayOptions),

    /// Print the JSON Schema of the configuration, for editors.
    #[command(after_help = "\
Holds the options of every plugin. With the YAML language server, save it as
portcullis.schema.json and begin the configuration with
  # yaml-language-server: $schema=portcullis.schema.json")]
    Schema {
        /// That of files of tests (`x.test.yaml`) instead.
        #[arg(long)]
        tests: bool,
    },

    /// List the kinds of plugins, or show one: its options and an example.
    Plugins {
        /// Show this kind.
        name: Option<String>,
    },

    /// Write a policy that works as it is, to be changed.
    New {
        #[command(subcommand)]
        what: New,
    },

    /// Make keys for the `api_key` plugin.
    Key {
        #[command(subcommand)]
        what: Key,
    },

    /// Look into tokens of the `jwt` plugin.
    Jwt {
        #[command(subcommand)]
        what: Jwt,
    },

    /// Ask a running gateway how it is: generation, listeners, plugins, the last refused reload.
    #[command(after_help = "\
Asks the admin interface of the gateway that the configuration describes. Exit code 1 if the last
reload was refused or nobody answers.")]
    Status(StatusOptions),

    /// Tell of a request that a running gateway has answered: which plugins were called, what each
    /// answered and changed, who decided.
    #[command(after_help = "\
A refused client is told the request's id, in the problem document and, with the `request_id`
plugin, in a header. Without an id the latest requests are listed that were refused or failed.
The gateway remembers as many as `records` says in its configuration. Exit code 1 if it does not
remember the one that is asked for, or nobody answers.

For example: portcullis explain --dry-run GET https://api.example.com/orders -H 'x-api-key: k1'")]
    Explain(ExplainOptions),

    /// Sum up what plugins in shadow would have done: how many requests they would have refused, why, on
    /// which routes, of which clients.
    #[command(after_help = "\
A plugin is put into shadow by `mode: shadow` beside its table. Counted is since the gateway's start.")]
    Shadow(StatusOptions),

    /// Print shell completions.
    #[command(
        after_help = "For example: portcullis completions bash > ~/.local/share/bash-completion/completions/portcullis"
    )]
    Completions {
        /// The shell.
        shell: Shell,
    },
}

/// Which configuration is meant.
#[derive(Debug, Default, Args)]
pub(crate) struct ConfigOption {
    /// The configuration file. Default: $PORTCULLIS_CONFIG, else ./portcullis.yaml, else the quickstart.
    #[arg(value_name = "CONFIG")]
    file: Option<PathBuf>,

    /// The same, as an option.
    #[arg(short = 'c', long = "config", value_name = "FILE", conflicts_with = "file")]
    option: Option<PathBuf>,
}

#[derive(Debug, Default, Args)]
pub(crate) struct RunOptions {
    #[command(flatten)]
    pub(crate) config: ConfigOption,

    /// Start a demo upstream on loopback, at the port ${PORTCULLIS_DEMO_PORT} of the configuration.
    #[arg(long)]
    pub(crate) demo: bool,

    /// Where the files have an error at the start, serve what applied last instead of ending.
    #[arg(long)]
    pub(crate) last_good: bool,
}

#[derive(Debug, Args)]
struct CheckOptions {
    #[command(flatten)]
    config: ConfigOption,

    /// Print the findings as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Default, Args)]
pub(crate) struct TestOptions {
    /// Files of tests, or directories that hold some.
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,

    /// The configuration whose tests are meant. Default: $PORTCULLIS_CONFIG, else ./portcullis.yaml, else all tests here.
    #[arg(short, long, value_name = "FILE", conflicts_with = "paths")]
    config: Option<PathBuf>,

    /// Run them again whenever a file changes.
    #[arg(long)]
    watch: bool,

    /// Tell which lines of scripts ran.
    #[arg(long)]
    coverage: bool,

    /// Write which lines of scripts ran, in the form of lcov.
    #[arg(long, value_name = "FILE")]
    lcov: Option<PathBuf>,

    /// Write a report in the form of JUnit.
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct ReplayOptions {
    /// The recorded requests. Default: the file that the configuration records them in.
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,

    /// The configuration to be tried.
    #[arg(long, value_name = "CONFIG")]
    against: PathBuf,

    /// The configuration that it is compared with. Default: $PORTCULLIS_CONFIG, else ./portcullis.yaml.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Print the answer as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum New {
    /// A policy as a Rhai script: `NAME.rhai`.
    Script(NewOptions),
    /// A policy as a WebAssembly module: a directory `NAME` with all it needs to build.
    Wasm(NewWasmOptions),
}

#[derive(Debug, Args)]
struct NewOptions {
    /// Its name: lowercase letters, digits, `-` and `_`.
    name: String,

    /// Where to put it.
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Key {
    /// Make a key, print it once, and with it the line to keep of it, which holds its hash.
    #[command(after_help = "\
Two lines on standard output: the key for whoever will use it, and the line for the plugin's `keys` or
one of its `files`.

For example: portcullis key new --id ann --role reader --hash-key env:API_KEY_HASH_KEY")]
    New(NewKeyOptions),
}

#[derive(Debug, Args)]
struct NewKeyOptions {
    /// Whose key it is.
    #[arg(long)]
    id: String,

    /// A role of whoever has it; may be given several times.
    #[arg(long)]
    role: Vec<String>,

    /// A scope that it grants; may be given several times.
    #[arg(long)]
    scope: Vec<String>,

    /// When it ends to hold, e.g. 2031-01-31T00:00:00Z. Default: never.
    #[arg(long, value_name = "TIME")]
    expires: Option<String>,

    /// What else is known of it, which policies see as a claim; the value may be JSON.
    #[arg(long, value_name = "NAME=VALUE")]
    metadata: Vec<String>,

    /// The secret of the plugin's `hash_key`, named as there: env:NAME or file:PATH.
    #[arg(long, value_name = "SECRET")]
    hash_key: String,
}

#[derive(Debug, Subcommand)]
enum Jwt {
    /// Tell how a token is judged, check by check.
    #[command(after_help = "\
Without a configuration, only the token's form and, with --keys, its signature are looked at. What it
says is printed, its signature is not. Keys that a gateway fetches are not fetched here: --keys stands for
them. Exit code 1 if no instance takes the token.

For example: portcullis jwt why - --config portcullis.yaml < token")]
    Why(JwtOptions),
}

#[derive(Debug, Args)]
struct JwtOptions {
    /// The token; `-` reads it from standard input, where nobody else sees it.
    token: String,

    /// The configuration whose `jwt` plugins are asked.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Keys in place of those that are fetched: PEM, a JWK, or a set.
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct NewWasmOptions {
    #[command(flatten)]
    common: NewOptions,

    /// The language to write it in.
    #[arg(long, value_name = "LANGUAGE", default_value = "rust", value_parser = languages())]
    lang: Language,
}

/// The languages of policies, by their names.
fn languages() -> impl TypedValueParser<Value = Language> {
    PossibleValuesParser::new(Language::ALL.map(Language::as_str))
        .try_map(|name| Language::ALL.into_iter().find(|language| language.as_str() == name).ok_or("unknown"))
}

#[derive(Debug, Args)]
struct StatusOptions {
    #[command(flatten)]
    config: ConfigOption,

    /// Ask this address instead of the configuration's.
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<SocketAddr>,

    /// Print the answer as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct ExplainOptions {
    /// The request's id.
    id: Option<String>,

    /// Tell what would become of a request, without a gateway that runs: the configuration is built and run by
    /// itself, before upstreams that answer 200.
    #[arg(long, num_args = 2, value_names = ["METHOD", "URL"], conflicts_with_all = ["id", "admin"])]
    dry_run: Option<Vec<String>>,

    /// A header of that request.
    #[arg(short = 'H', long, value_name = "NAME: VALUE", requires = "dry_run")]
    header: Vec<String>,

    /// The body of that request.
    #[arg(short, long, value_name = "TEXT", requires = "dry_run")]
    data: Option<String>,

    /// The client's address of that request, or of those to list.
    #[arg(long, value_name = "ADDRESS", conflicts_with = "id")]
    client: Option<IpAddr>,

    /// The listener that that request comes through. Default: the first.
    #[arg(long, value_name = "NAME", requires = "dry_run")]
    listener: Option<String>,

    /// List requests that passed, instead of those that were refused or failed.
    #[arg(long, conflicts_with = "id")]
    passed: bool,

    /// List at most so many.
    #[arg(long, value_name = "COUNT", default_value_t = 20, conflicts_with = "id")]
    last: u16,

    /// List only those that this plugin, or `core.<part>`, has decided.
    #[arg(long, value_name = "NAME", conflicts_with = "id")]
    by: Option<String>,

    /// List only those of this reason.
    #[arg(long, value_name = "CODE", conflicts_with = "id")]
    reason: Option<String>,

    /// List only those of this route.
    #[arg(long, value_name = "NAME", conflicts_with = "id")]
    route: Option<String>,

    /// The configuration file. Default: $PORTCULLIS_CONFIG, else ./portcullis.yaml, else the quickstart.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Ask this address instead of the configuration's.
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<SocketAddr>,

    /// Print the answer as JSON.
    #[arg(long)]
    json: bool,
}

/// Why a command did not work.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Something went wrong while running.
    Run(String),
    /// The command line or the environment is wrong.
    Usage(String),
    /// A file is wrong.
    Files(Diagnostics),
}

/// Runs the program.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let default = || {
        let config = ConfigOption { file: cli.config, option: None };
        Command::Run(RunOptions { config, ..RunOptions::default() })
    };
    answer(cli.command.unwrap_or_else(default)).unwrap_or_else(|failure| failure.report())
}

fn answer(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Run(options) => run::run(&options),
        Command::Check(options) => check::check(&options.config, options.json),
        Command::Test(options) => test::test(&options),
        Command::Replay(options) => replay::replay(&options),
        Command::Schema { tests } => plugins::schema(tests),
        Command::Plugins { name: None } => plugins::list(),
        Command::Plugins { name: Some(name) } => plugins::show(&name),
        Command::New { what: New::Script(options) } => new::script(&options.name, &options.dir),
        Command::New { what: New::Wasm(options) } => {
            new::wasm(&options.common.name, options.lang, &options.common.dir)
        }
        Command::Key { what: Key::New(options) } => key::new(options),
        Command::Jwt { what: Jwt::Why(options) } => jwt::why(&options),
        Command::Status(options) => status::status(&options.config, options.admin, options.json),
        Command::Explain(options) => explain::explain(options),
        Command::Shadow(options) => shadow::shadow(&options.config, options.admin, options.json),
        Command::Completions { shell } => completions(shell),
    }
}

fn completions(shell: Shell) -> Result<ExitCode, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "portcullis", &mut script);
    say::result(&String::from_utf8_lossy(&script));
    Ok(ExitCode::SUCCESS)
}

impl ConfigOption {
    /// The file that was named, if one was.
    pub(crate) fn named(&self) -> Option<PathBuf> {
        self.file.clone().or_else(|| self.option.clone())
    }
}

impl Failure {
    /// What is wrong, for somebody else.
    pub(crate) fn text(&self) -> String {
        match self {
            Failure::Run(message) | Failure::Usage(message) => message.clone(),
            Failure::Files(diagnostics) => diagnostics.render(false),
        }
    }

    fn report(self) -> ExitCode {
        match self {
            Failure::Run(message) => {
                say::remark(&format!("error: {message}"));
                ExitCode::from(1)
            }
            Failure::Usage(message) => {
                say::remark(&format!("error: {message}"));
                ExitCode::from(2)
            }
            Failure::Files(diagnostics) => {
                say::remark(&diagnostics.render(say::remark_color()));
                ExitCode::from(2)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_and_argument_says_what_it_is_for() {
        fn undocumented(command: &clap::Command, found: &mut Vec<String>) {
            if command.get_about().is_none() {
                found.push(command.get_name().to_owned());
            }
            for argument in command.get_arguments().filter(|argument| argument.get_help().is_none()) {
                found.push(format!("{} {}", command.get_name(), argument.get_id()));
            }
            command.get_subcommands().for_each(|command| undocumented(command, found));
        }
        let mut found = Vec::new();
        undocumented(&Cli::command(), &mut found);
        assert!(found.is_empty(), "{found:?}");
    }

    #[test]
    fn the_configuration_is_named_in_either_way_but_not_both() {
        let named = |arguments: &[&str]| match Cli::try_parse_from(arguments).map(|cli| cli.command) {
            Ok(Some(Command::Run(options))) => options.config.named(),
            other => panic!("{other:?}"),
        };
        assert_eq!(named(&["portcullis", "run", "a.yaml"]), Some("a.yaml".into()));
        assert_eq!(named(&["portcullis", "run", "--config", "a.yaml"]), Some("a.yaml".into()));
        assert_eq!(named(&["portcullis", "run"]), None);
        assert!(Cli::try_parse_from(["portcullis", "run", "a.yaml", "-c", "b.yaml"]).is_err());
        assert_eq!(
            Cli::try_parse_from(["portcullis", "-c", "a.yaml"]).unwrap().config,
            Some("a.yaml".into())
        );
    }
}
