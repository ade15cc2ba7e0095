//! A handler made with the public SDK for Rust. What it does is said by the header `x-do` of requests, and what it
//! finds goes into the header `x-found` of the request or the response.

use std::sync::atomic::{AtomicI32, Ordering};

use http_wasm_guest::host::{admin, feature, log, Request, Response};
use http_wasm_guest::{register, Guest};

/// What the SDK has no words for.
mod trailers {
    pub const REQUEST: i32 = 2;
    pub const RESPONSE: i32 = 3;

    #[link(wasm_import_module = "http_handler")]
    unsafe extern "C" {
        fn get_header_values(kind: i32, name: *const u8, len: i32, buf: *mut u8, limit: i32) -> i64;
        fn add_header_value(kind: i32, name: *const u8, len: i32, value: *const u8, value_len: i32);
    }

    /// The values of a name, with a comma behind each.
    pub fn get(kind: i32, name: &str) -> String {
        let mut buffer = [0; 256];
        let (to, limit) = (buffer.as_mut_ptr(), buffer.len() as i32);
        let length = unsafe { get_header_values(kind, name.as_ptr(), name.len() as i32, to, limit) } as u32;
        let values = &buffer[..length as usize];
        String::from_utf8_lossy(values).replace('\0', ",")
    }

    pub fn add(kind: i32, name: &str, value: &str) {
        let (name_len, value_len) = (name.len() as i32, value.len() as i32);
        unsafe { add_header_value(kind, name.as_ptr(), name_len, value.as_ptr(), value_len) };
    }
}

/// What Traefik calls when it has made an instance, where a program's `main` would be.
#[no_mangle]
extern "C" fn _initialize() {
    let configuration = text(&admin::config());
    assert_ne!(configuration, "refuse", "no such thing as refuse");
    if configuration.contains("buffer") {
        admin::enable(feature::BufferRequest | feature::BufferResponse | feature::Trailers);
    }
    register(Handler { configuration, served: AtomicI32::new(0) });
}

struct Handler {
    configuration: String,
    served: AtomicI32,
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn act(request: &Request) -> String {
    request.header.get(b"x-do").map(|act| text(&act)).unwrap_or_default()
}

impl Guest for Handler {
    fn handle_request(&self, request: &Request, response: &Response) -> (bool, i32) {
        let served = self.served.fetch_add(1, Ordering::Relaxed) + 1;
        let found = |what: &str| request.header.set(b"x-found", what.as_bytes());
        match act(request).as_str() {
            "refuse" => {
                response.set_status(429);
                response.header.set(b"x-by", b"guest");
                response.body.write(b"too ");
                response.body.write(b"many");
                return (false, 0);
            }
            "rewrite" => {
                request.set_method(b"PUT");
                request.set_uri(b"/changed?by=guest");
                request.header.add(b"x-list", b"a");
                request.header.add(b"x-list", b"b");
                request.header.set(b"x-set", b"new");
                request.header.remove(b"x-gone");
                found(&format!("{} {}", text(&request.method()), text(&request.uri())));
            }
            "facts" => {
                let source = text(&request.source_addr());
                let host = source.rsplit_once(':').map_or("", |(host, _)| host);
                let names = request.header.names().iter().filter(|name| name.starts_with(b"x-")).count();
                let lists = request.header.values(b"X-List").len();
                let version = text(&request.version());
                found(&format!("{host} {version} {names} {lists} {}", self.configuration));
            }
            "served" => found(&served.to_string()),
            "log" => log::write(1, b"said by the guest"),
            "read" => found(&text(&request.body.read())),
            "upper" => request.body.write(&text(&request.body.read()).to_ascii_uppercase().into_bytes()),
            "replace" => {
                request.body.write(b"instead");
                request.header.set(b"content-type", b"text/plain");
            }
            "judge-body" if request.body.read().starts_with(b"bad") => {
                response.set_status(422);
                response.body.write(b"no such body");
                return (false, 0);
            }
            "early" => {
                response.header.set(b"x-early", b"set");
                response.header.add(b"x-kind", b"added");
            }
            "trailers" => {
                found(&trailers::get(trailers::REQUEST, "x-told"));
                trailers::add(trailers::REQUEST, "x-more", "1");
            }
            "late" => {
                admin::enable(feature::BufferResponse);
            }
            "trap" => panic!("the guest lost its head"),
            "spin" => loop {
                std::hint::black_box(0);
            },
            "bomb" => {
                let mut held: Vec<Vec<u8>> = Vec::new();
                loop {
                    held.push(vec![1; 1 << 20]);
                    std::hint::black_box(&held);
                }
            }
            "flood" => loop {
                request.body.write(&[0; 64 << 10]);
            },
            _ => {}
        }
        (true, 40 + served)
    }

    fn handle_response(&self, context: i32, request: &Request, response: &Response, is_error: bool) {
        let found = |what: &str| response.header.set(b"x-found", what.as_bytes());
        match act(request).as_str() {
            "response" => {
                found(&format!("{} {context} {is_error}", response.status()));
                response.set_status(202);
                response.header.remove(b"x-kind");
            }
            "read-back" | "late" => found(&text(&response.body.read())),
            "upper-back" => {
                let body = text(&response.body.read()).to_ascii_uppercase();
                response.body.write(body.as_bytes());
                found(&body.len().to_string());
            }
            "replace-back" => response.body.write(b"instead"),
            "trailers" => {
                found(&trailers::get(trailers::RESPONSE, "x-checksum"));
                trailers::add(trailers::RESPONSE, "x-more", "2");
            }
            "change-late" => request.set_method(b"PUT"),
            "trap-response" => panic!("the guest lost its head on the way back"),
            "spin-response" => loop {
                std::hint::black_box(0);
            },
            _ => {}
        }
    }
}
