//! Hook points, what a plugin wants to be called for, and what it answers.

use std::fmt;
use std::future::Future;
use std::pin::Pin;

use crate::reply::Reply;

/// A point in a request's life at which plugins run. The name is the same as trait method, script
/// function, Wasm export, metric label and in the docs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum HookName {
    /// A connection was accepted; nothing has been read, TLS has not begun.
    OnConnection,
    /// The request's head is read and the route known.
    OnRequest,
    /// The request's body: whole, or chunk by chunk, for plugins that asked for it.
    OnRequestBody,
    /// Once per attempt: an endpoint is chosen and the outgoing request built.
    OnUpstream,
    /// The response's head is there: from upstream, from a plugin, or from the gateway itself.
    OnResponse,
    /// The response's body, like the request's.
    OnResponseBody,
    /// The exchange is over: the body ended, failed, or the client is gone.
    OnLog,
}

impl HookName {
    /// Every hook, in the order of a request's life.
    pub const ALL: [HookName; 7] = [
        HookName::OnConnection,
        HookName::OnRequest,
        HookName::OnRequestBody,
        HookName::OnUpstream,
        HookName::OnResponse,
        HookName::OnResponseBody,
        HookName::OnLog,
    ];

    /// The hook's one name, e.g. `on_request`.
    pub const fn as_str(self) -> &'static str {
        match self {
            HookName::OnConnection => "on_connection",
            HookName::OnRequest => "on_request",
            HookName::OnRequestBody => "on_request_body",
            HookName::OnUpstream => "on_upstream",
            HookName::OnResponse => "on_response",
            HookName::OnResponseBody => "on_response_body",
            HookName::OnLog => "on_log",
        }
    }
}

impl fmt::Display for HookName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a plugin wants of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BodyWish {
    /// Nothing: the body streams past untouched.
    #[default]
    None,
    /// Every chunk, through a [`BodyFilter`](crate::BodyFilter) made per exchange.
    Stream,
    /// The whole body, buffered before the hook runs. A longer one is refused (413 for a request,
    /// 502 for a response).
    Whole {
        /// Bytes at most.
        limit: usize,
    },
}

/// Which hooks a plugin wants and what it wants of the bodies; read once, at load. A hook that
/// nobody asked for costs nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Needs {
    hooks: u8,
    every_response: bool,
    /// The wish for the request's body.
    pub request_body: BodyWish,
    /// The wish for the response's body.
    pub response_body: BodyWish,
}

impl Needs {
    /// The given hooks, no body.
    pub fn hooks(hooks: impl IntoIterator<Item = HookName>) -> Self {
        hooks.into_iter().fold(Needs::default(), Needs::and)
    }

    /// One hook more.
    #[must_use]
    pub fn and(mut self, hook: HookName) -> Self {
        self.hooks |= 1 << hook as u8;
        self
    }

    /// The request's body, with its hook.
    #[must_use]
    pub fn request_body(mut self, wish: BodyWish) -> Self {
        self.request_body = wish;
        if wish == BodyWish::None { self } else { self.and(HookName::OnRequestBody) }
    }

    /// The response's body, with its hook.
    #[must_use]
    pub fn response_body(mut self, wish: BodyWish) -> Self {
        self.response_body = wish;
        if wish == BodyWish::None { self } else { self.and(HookName::OnResponseBody) }
    }

    /// Response hooks run for every response, also for those of plugins further out and of the
    /// gateway itself, which this plugin's request hooks have not seen. For what belongs on every
    /// answer: security headers, CORS, the request id.
    #[must_use]
    pub fn on_every_response(mut self) -> Self {
        self.every_response = true;
        self
    }

    /// Whether `hook` is wanted.
    pub fn wants(&self, hook: HookName) -> bool {
        self.hooks & (1 << hook as u8) != 0
    }

    /// Whether response hooks run for exchanges that the plugin was not asked about on their way in:
    /// if it wants that, or wants nothing on the way in anyway.
    pub fn is_on_every_response(&self) -> bool {
        use HookName::*;
        self.every_response
            || ![OnRequest, OnRequestBody, OnUpstream].into_iter().any(|hook| self.wants(hook))
    }
}

/// A plugin's verdict at a hook.
#[derive(Debug)]
pub enum Decision {
    /// Go on.
    Continue,
    /// Answer with this instead: a refusal, a redirect, a reply of the plugin's own.
    Respond(Box<Reply>),
    /// Close the connection without an answer.
    Drop,
}

/// The future behind a hook that waits.
pub type HookFuture<'a> = Pin<Box<dyn Future<Output = Result<Decision, PluginError>> + Send + 'a>>;

/// What a hook returns: its verdict, or the wait for it. `Ready` neither allocates nor yields;
/// `Wait` is polled under the instance's timeout, and may be dropped at any time.
pub enum Hook<'a> {
    /// The verdict, now.
    Ready(Result<Decision, PluginError>),
    /// The verdict, later.
    Wait(HookFuture<'a>),
}

impl Hook<'_> {
    /// Go on, at once.
    pub const CONTINUE: Hook<'static> = Hook::Ready(Ok(Decision::Continue));

    /// Answer with `reply`, at once.
    pub fn respond(reply: Reply) -> Self {
        Hook::Ready(Ok(Decision::Respond(Box::new(reply))))
    }
}

impl From<Decision> for Hook<'_> {
    fn from(decision: Decision) -> Self {
        Hook::Ready(Ok(decision))
    }
}

impl From<Result<Decision, PluginError>> for Hook<'_> {
    fn from(result: Result<Decision, PluginError>) -> Self {
        Hook::Ready(result)
    }
}

/// The way in which a plugin failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The plugin said so itself.
    Failed,
    /// A wait took longer than the instance's timeout.
    Timeout,
    /// A budget of the sandbox was used up: operations, CPU time, memory, depth.
    Budget,
    /// A Wasm trap, or an error that a script raised.
    Trap,
    /// A panic in native code.
    Panic,
}

impl ErrorKind {
    /// Stable reason code of an exchange that failed this way, e.g. `plugin.timeout`.
    pub const fn reason(self) -> &'static str {
        match self {
            ErrorKind::Failed => "plugin.failed",
            ErrorKind::Timeout => "plugin.timeout",
            ErrorKind::Budget => "plugin.budget",
            ErrorKind::Trap => "plugin.trap",
            ErrorKind::Panic => "plugin.panic",
        }
    }
}

/// A plugin's own failure, as opposed to a refusal. What follows is for the instance's `on_error`
/// to say; the client never sees the message.
#[derive(Debug)]
pub struct PluginError(Box<(ErrorKind, String)>);

impl PluginError {
    /// A failure of `kind`; `message` is for the operator: what failed and where.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        PluginError(Box::new((kind, message.into())))
    }

    /// A failure the plugin noticed itself.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Failed, message)
    }

    /// The way in which it failed.
    pub fn kind(&self) -> ErrorKind {
        self.0.0
    }

    /// What failed and where, for the operator.
    pub fn message(&self) -> &str {
        &self.0.1
    }
}

impl fmt::Display for PluginError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message())
    }
}

impl std::error::Error for PluginError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hook_stays_small_enough_to_return_in_registers_or_a_few_words() {
        assert!(size_of::<Decision>() <= 16);
        assert!(size_of::<PluginError>() == 8);
        assert!(size_of::<Hook<'_>>() <= 24, "{}", size_of::<Hook<'_>>());
    }

    #[test]
    fn needs_remember_what_was_asked_for() {
        let needs = Needs::hooks([HookName::OnRequest])
            .response_body(BodyWish::Whole { limit: 10 })
            .request_body(BodyWish::None);
        assert!(needs.wants(HookName::OnRequest) && needs.wants(HookName::OnResponseBody));
        assert!(!needs.wants(HookName::OnRequestBody) && !needs.wants(HookName::OnLog));
        assert!(!needs.is_on_every_response() && needs.on_every_response().is_on_every_response());
        assert!(Needs::hooks([HookName::OnResponse, HookName::OnLog]).is_on_every_response());
    }
}
