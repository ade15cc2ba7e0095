//! What is measured.

/// One kind of work, the same for every contestant.
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    /// What happens, in a line.
    pub(crate) about: &'static str,
    /// What the configurations are told, see [`crate::template`].
    pub(crate) tags: &'static [&'static str],
    /// Who takes part.
    pub(crate) contestants: &'static [&'static str],
    pub(crate) work: Work,
}

/// What is done.
pub(crate) enum Work {
    /// Requests are sent, as fast as they are answered.
    Requests(Requests),
    /// Connections are opened, used once, and kept.
    Idle {
        /// How many.
        connections: usize,
    },
}

/// Requests that are all alike.
pub(crate) struct Requests {
    pub(crate) client: Client,
    pub(crate) connections: usize,
    /// The path; `{n}` stands for a number below `variety`.
    pub(crate) path: &'static str,
    pub(crate) variety: usize,
    /// Bytes of body; with some, the method is POST.
    pub(crate) upload: usize,
    pub(crate) headers: &'static [(&'static str, &'static str)],
    /// The status that is right.
    pub(crate) status: u16,
}

/// How requests are sent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Client {
    /// One after the other on each of the connections, HTTP/1.1.
    KeepAlive,
    /// Each on a connection of its own; with TLS, each with a full handshake.
    Fresh,
    /// As many at a time on each of the connections, HTTP/2.
    Multiplexed(usize),
}

/// A small answer, kept alive, from many clients.
const PLAIN: Requests = Requests {
    client: Client::KeepAlive,
    connections: 64,
    path: "/",
    variety: 0,
    upload: 0,
    headers: &[],
    status: 200,
};

/// Large bodies fill buffers, not queues.
const LARGE: Requests = Requests { connections: 8, ..PLAIN };

const KEY: &[(&str, &str)] = &[("x-api-key", "open-sesame")];

const PROXIES: &[&str] = &["portcullis", "nginx", "haproxy"];
const PROXIES_AND_OPTIONAL: &[&str] = &["portcullis", "nginx", "haproxy", "envoy", "traefik", "caddy"];
const EVERYBODY: &[&str] = &["portcullis", "nginx", "haproxy", "haproxy-tcp", "envoy", "traefik", "caddy"];
const PROXIES_AND_RELAY: &[&str] = &["portcullis", "nginx", "haproxy", "haproxy-tcp"];

/// All of them.
pub(crate) const ALL: &[Workload] = &[
    Workload {
        name: "plain",
        about: "HTTP/1.1, keep-alive, 64 connections, 74 bytes of JSON",
        tags: &[],
        contestants: EVERYBODY,
        work: Work::Requests(PLAIN),
    },
    Workload {
        name: "download-64k",
        about: "HTTP/1.1, keep-alive, 64 connections, answers of 64 KiB",
        tags: &[],
        contestants: PROXIES_AND_RELAY,
        work: Work::Requests(Requests { path: "/files/64k", ..PLAIN }),
    },
    Workload {
        name: "download-10m",
        about: "HTTP/1.1, keep-alive, 8 connections, answers of 10 MiB",
        tags: &[],
        contestants: PROXIES_AND_RELAY,
        work: Work::Requests(Requests { path: "/files/10m", ..LARGE }),
    },
    Workload {
        name: "upload-64k",
        about: "HTTP/1.1, keep-alive, 64 connections, requests of 64 KiB",
        tags: &[],
        contestants: PROXIES_AND_RELAY,
        work: Work::Requests(Requests { path: "/upload", upload: 64 << 10, ..PLAIN }),
    },
    Workload {
        name: "upload-10m",
        about: "HTTP/1.1, keep-alive, 8 connections, requests of 10 MiB",
        tags: &[],
        contestants: PROXIES_AND_RELAY,
        work: Work::Requests(Requests { path: "/upload", upload: 10 << 20, ..LARGE }),
    },
    Workload {
        name: "connect",
        about: "HTTP/1.1, a new connection for each request",
        tags: &[],
        contestants: PROXIES_AND_RELAY,
        work: Work::Requests(Requests { client: Client::Fresh, connections: 8, ..PLAIN }),
    },
    Workload {
        name: "tls",
        about: "HTTP/1.1 over TLS 1.3, keep-alive, 64 connections, 74 bytes of JSON",
        tags: &["tls"],
        contestants: PROXIES_AND_OPTIONAL,
        work: Work::Requests(PLAIN),
    },
    Workload {
        name: "tls-download-64k",
        about: "HTTP/1.1 over TLS 1.3, keep-alive, 64 connections, answers of 64 KiB",
        tags: &["tls"],
        contestants: PROXIES,
        work: Work::Requests(Requests { path: "/files/64k", ..PLAIN }),
    },
    Workload {
        name: "handshake",
        about: "HTTP/1.1 over TLS 1.3, a new connection with a full handshake for each request",
        tags: &["tls"],
        contestants: PROXIES,
        work: Work::Requests(Requests { client: Client::Fresh, connections: 8, ..PLAIN }),
    },
    Workload {
        name: "http2",
        about: "HTTP/2 over TLS 1.3, 8 connections with 32 requests at a time each, 74 bytes of JSON",
        tags: &["tls"],
        contestants: PROXIES_AND_OPTIONAL,
        work: Work::Requests(Requests { client: Client::Multiplexed(32), connections: 8, ..PLAIN }),
    },
    Workload {
        name: "access-log",
        about: "as `plain`, with one line of access log per request to a file",
        tags: &["log"],
        contestants: PROXIES,
        work: Work::Requests(PLAIN),
    },
    Workload {
        name: "headers",
        about: "as `plain`; a request header is set, one removed; two response headers are set, one removed",
        tags: &["headers"],
        contestants: PROXIES_AND_OPTIONAL,
        work: Work::Requests(Requests { headers: &[("x-debug", "1")], ..PLAIN }),
    },
    Workload {
        name: "ip-list",
        about: "as `plain`, from an address that is not on a list of 100,000 refused ranges",
        tags: &["blocked"],
        contestants: PROXIES,
        work: Work::Requests(PLAIN),
    },
    Workload {
        name: "ip-list-refused",
        about: "as `plain`, from an address that is on a list of 100,001 refused ranges: 403 without the origin",
        tags: &["blocked", "listed"],
        contestants: PROXIES,
        work: Work::Requests(Requests { status: 403, ..PLAIN }),
    },
    Workload {
        name: "rate-limit",
        about: "as `plain`; requests are counted per client, against a limit that is not reached",
        tags: &["limit"],
        contestants: PROXIES,
        work: Work::Requests(PLAIN),
    },
    Workload {
        name: "policy",
        about: "as `plain`; a request header must be there and equal, a response header is set",
        tags: &["policy"],
        contestants: &[
            "portcullis",
            "portcullis-rhai",
            "portcullis-wasm",
            "portcullis-wasm-reuse",
            "nginx",
            "nginx-lua",
            "haproxy",
        ],
        work: Work::Requests(Requests { headers: KEY, ..PLAIN }),
    },
    Workload {
        name: "routes",
        about: "as `plain`, spread over 10,000 routes",
        tags: &["routes"],
        contestants: PROXIES,
        work: Work::Requests(Requests { path: "/things/{n}", variety: 10_000, ..PLAIN }),
    },
    Workload {
        name: "idle",
        about: "10,000 connections, each kept after one request: memory per connection",
        tags: &[],
        contestants: PROXIES,
        work: Work::Idle { connections: 10_000 },
    },
    Workload {
        name: "idle-tls",
        about: "10,000 connections over TLS 1.3, each kept after one request: memory per connection",
        tags: &["tls"],
        contestants: PROXIES,
        work: Work::Idle { connections: 10_000 },
    },
    Workload {
        name: "reload",
        about: "as `policy`, while the policy is edited and reloaded every 100 ms, beside the same without edits",
        tags: &["policy"],
        contestants: &[
            "portcullis-rhai",
            "portcullis-rhai-edited",
            "portcullis-both",
            "portcullis-both-edited",
            "nginx",
            "nginx-edited",
        ],
        work: Work::Requests(Requests { headers: KEY, ..PLAIN }),
    },
];
