//! A filter made with the public SDK for Rust. What it does is said by its configuration and by the headers of
//! requests: `x-do` names an act, and what the act finds goes into the header `x-found` of the request or the response.

use std::time::Duration;

use proxy_wasm::hostcalls;
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, Bytes, ContextType, LogLevel, MetricType};

proxy_wasm::main! {{
    proxy_wasm::set_log_level(LogLevel::Trace);
    proxy_wasm::set_root_context(|_| Box::new(Root::default()));
}}

#[derive(Default)]
struct Root {
    configuration: String,
    ticks: u32,
    queue: Option<u32>,
}

impl Context for Root {
    fn on_http_call_response(&mut self, _: u32, _: usize, size: usize, _: usize) {
        let body = self.get_http_call_response_body(0, size).unwrap_or_default();
        self.set_shared_data("fetched", Some(&body), None).unwrap();
    }
}

impl RootContext for Root {
    fn on_vm_start(&mut self, _: usize) -> bool {
        self.get_vm_configuration().as_deref() != Some(b"refuse")
    }

    fn on_configure(&mut self, _: usize) -> bool {
        let configuration = self.get_plugin_configuration().unwrap_or_default();
        self.configuration = String::from_utf8(configuration).unwrap();
        match self.configuration.as_str() {
            "refuse" => {
                log::error!("no such thing as refuse");
                return false;
            }
            "tick" => self.set_tick_period(Duration::from_millis(20)),
            "queue" => self.queue = Some(self.register_shared_queue("work")),
            "fetch" => {
                let headers = vec![(":method", "GET"), (":path", "/fetched"), (":authority", "api")];
                self.dispatch_http_call("api", headers, None, vec![], Duration::from_secs(1)).unwrap();
            }
            _ => {}
        }
        true
    }

    fn on_tick(&mut self) {
        self.ticks += 1;
        self.set_shared_data("ticks", Some(self.ticks.to_string().as_bytes()), None).unwrap();
    }

    fn on_queue_ready(&mut self, queue: u32) {
        while let Ok(Some(item)) = self.dequeue_shared_queue(queue) {
            self.set_shared_data("worked", Some(&item), None).unwrap();
        }
    }

    fn create_http_context(&self, _: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Stream { configuration: self.configuration.clone(), act: String::new(), body: 0, call: 0, heard: vec![] }))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

struct Stream {
    configuration: String,
    act: String,
    body: usize,
    call: u32,
    heard: Vec<String>,
}

impl Stream {
    fn found(&self, what: &str) {
        self.set_http_request_header("x-found", Some(what));
    }

    fn shared(&self, key: &str) -> String {
        String::from_utf8(self.get_shared_data(key).0.unwrap_or_default()).unwrap()
    }

    fn property(&self, path: &str) -> String {
        match self.get_property(path.split('.').collect()) {
            None => "none".into(),
            Some(value) => match String::from_utf8(value.clone()) {
                Ok(text) if !text.contains('\0') && !text.contains('\u{1}') => text,
                _ if value.len() == 8 => i64::from_le_bytes(value.try_into().unwrap()).to_string(),
                _ => format!("{value:?}"),
            },
        }
    }
}

impl Context for Stream {
    fn on_http_call_response(&mut self, call: u32, _: usize, size: usize, _: usize) {
        assert_eq!(call, self.call);
        if self.act == "later" {
            self.set_shared_data("later", Some(self.get_http_request_header("x-do").unwrap().as_bytes()), None).unwrap();
            self.done();
            return;
        }
        let status = self.get_http_call_response_header(":status").unwrap();
        let kind = self.get_http_call_response_header("x-kind").unwrap_or_default();
        let body = self.get_http_call_response_body(0, size).unwrap_or_default();
        if status == "403" {
            self.send_http_response(403, vec![("x-by", "call")], Some(&body));
            return;
        }
        let body = String::from_utf8(body).unwrap();
        self.found(&format!("{status} {kind} {body} {}", self.get_http_call_response_headers().len()));
        self.resume_http_request();
    }

    fn on_grpc_call_response(&mut self, call: u32, status: u32, size: usize) {
        assert_eq!(call, self.call);
        let message = self.get_grpc_call_response_body(0, size).unwrap_or_default();
        self.found(&format!("{status} {}", String::from_utf8(message).unwrap()));
        self.resume_http_request();
    }

    fn on_grpc_stream_message(&mut self, call: u32, size: usize) {
        assert_eq!(call, self.call);
        let message = self.get_grpc_stream_message(0, size).unwrap_or_default();
        self.heard.push(String::from_utf8(message).unwrap());
    }

    fn on_grpc_stream_close(&mut self, call: u32, status: u32) {
        assert_eq!(call, self.call);
        let (_, message) = self.get_grpc_status();
        self.found(&format!("{status} {} {}", self.heard.join(","), message.unwrap_or_default()));
        self.resume_http_request();
    }

    fn on_done(&mut self) -> bool {
        if self.act == "later" && self.call == 0 {
            self.call = self
                .dispatch_http_call(
                    "api",
                    vec![(":method", "GET"), (":path", "/later"), (":authority", "api")],
                    None,
                    vec![],
                    Duration::from_secs(1),
                )
                .unwrap();
            return false;
        }
        true
    }
}

impl HttpContext for Stream {
    fn on_http_request_headers(&mut self, count: usize, ended: bool) -> Action {
        assert_eq!(self.get_http_request_headers().len(), count);
        self.act = self.get_http_request_header("x-do").unwrap_or_default();
        if self.act.is_empty() {
            self.act.clone_from(&self.configuration);
        }
        let act = self.act.clone();
        let (act, rest) = act.split_once(' ').unwrap_or((&act, ""));
        match act {
            "headers" => {
                self.add_http_request_header("x-list", "a");
                self.add_http_request_header("x-list", "b");
                self.set_http_request_header("x-set", Some("new"));
                self.set_http_request_header("x-gone", None);
                self.set_http_request_header(":path", Some("/changed?by=guest"));
                self.set_http_request_header(":method", Some("PUT"));
                self.set_http_request_header(":authority", Some("changed.test"));
                let list = self.get_http_request_header("x-list").unwrap();
                let authority = self.get_http_request_header("host").unwrap();
                self.found(&format!("{list} {authority} {ended}"));
            }
            "all-headers" => {
                let mut headers = self.get_http_request_headers();
                headers.retain(|(name, _)| name != "x-gone");
                headers.push(("x-new".into(), "1".into()));
                headers.push(("x-new".into(), "2".into()));
                self.set_http_request_headers(headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect());
            }
            "refuse" => {
                self.send_http_response(429, vec![("x-by", "guest")], Some(b"too many"));
                return Action::Pause;
            }
            "close" => {
                self.reset_http_request();
                return Action::Pause;
            }
            "call" | "call-slowly" => {
                let headers =
                    vec![(":method", "POST"), (":path", rest), (":authority", "api.test"), ("x-a", "1")];
                let time = Duration::from_millis(if act == "call" { 5000 } else { 50 });
                match self.dispatch_http_call("api", headers, Some(b"asked"), vec![], time) {
                    Ok(call) => self.call = call,
                    Err(status) => {
                        self.found(&format!("{status:?}"));
                        return Action::Continue;
                    }
                }
                return Action::Pause;
            }
            "stranger" => {
                let headers = vec![(":method", "GET"), (":path", "/"), (":authority", "x")];
                let status = self.dispatch_http_call("stranger", headers, None, vec![], Duration::from_secs(1));
                self.found(&format!("{:?}", status.unwrap_err()));
            }
            "grpc" => {
                let call = self.dispatch_grpc_call("api", "a.B", "C", vec![], Some(rest.as_bytes()), Duration::from_secs(1));
                self.call = call.unwrap();
                return Action::Pause;
            }
            "call-grpc" => {
                let (method, message) = rest.split_once(' ').unwrap_or((rest, ""));
                let (metadata, message) = (vec![("x-asked", &b"7"[..])], Some(message.as_bytes()));
                let time = Duration::from_secs(5);
                let call = self.dispatch_grpc_call("grpc", "test.Test", method, metadata, message, time);
                self.call = call.unwrap();
                return Action::Pause;
            }
            "stream-grpc" => {
                let mut words = rest.split(' ');
                let method = words.next().unwrap_or_default();
                self.call = self.open_grpc_stream("grpc", "test.Test", method, vec![]).unwrap();
                for word in words {
                    self.send_grpc_stream_message(self.call, Some(word.as_bytes()), false);
                }
                self.send_grpc_stream_message(self.call, None, true);
                return Action::Pause;
            }
            "gather" => return Action::Pause,
            "hang" => return Action::Pause,
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
            "count" => {
                let (value, cas) = self.get_shared_data("count");
                let count: u32 = value.map_or(0, |value| String::from_utf8(value).unwrap().parse().unwrap());
                let next = (count + 1).to_string();
                self.set_shared_data("count", Some(next.as_bytes()), cas).unwrap();
                let stale = self.set_shared_data("count", Some(b"0"), Some(cas.unwrap_or(0).wrapping_add(7)));
                self.found(&format!("{count} {:?}", stale.unwrap_err()));
            }
            "enqueue" => {
                let queue = self.resolve_shared_queue(rest, "work").expect("no queue");
                self.enqueue_shared_queue(queue, Some(b"item")).unwrap();
            }
            "metrics" => {
                let hits = hostcalls::define_metric(MetricType::Counter, "hits").unwrap();
                hostcalls::increment_metric(hits, 2).unwrap();
                let level = hostcalls::define_metric(MetricType::Gauge, "level").unwrap();
                hostcalls::record_metric(level, 7).unwrap();
                self.found(&hostcalls::get_metric(level).unwrap().to_string());
            }
            "property" => self.found(&self.property(rest)),
            "own-property" => {
                self.set_property(vec!["mine", "too"], Some(b"own"));
                self.found(&self.property("mine.too"));
            }
            "shared" => self.found(&self.shared(rest)),
            "foreign" => {
                self.found(&format!("{:?}", self.call_foreign_function("compress", None).unwrap_err()));
            }
            "time" => {
                let since = self.get_current_time().duration_since(std::time::UNIX_EPOCH).unwrap();
                self.found(&(since.as_secs() > 1_700_000_000).to_string());
            }
            "log" => log::warn!("said {rest}"),
            _ => {}
        }
        Action::Continue
    }

    fn on_http_request_body(&mut self, size: usize, ended: bool) -> Action {
        self.body += 1;
        match self.act.as_str() {
            "gather" if !ended => return Action::Pause,
            "gather" => {
                let body = self.get_http_request_body(0, size).unwrap_or_default();
                self.found(&format!("{} bytes in {} calls", body.len(), self.body));
                self.set_http_request_body(0, size, &body.to_ascii_uppercase());
            }
            "hold" if !ended => return Action::Pause,
            "hold" => {
                let body = self.get_http_request_body(0, size).unwrap_or_default();
                self.set_http_request_body(0, size, &[b"<", &*body, b">"].concat());
            }
            "shout" => {
                let chunk = self.get_http_request_body(0, size).unwrap_or_default();
                self.set_http_request_body(0, size, &chunk.to_ascii_uppercase());
            }
            "refuse-body" => {
                self.send_http_response(422, vec![], Some(b"no such body"));
                return Action::Pause;
            }
            "ask-at-end" if ended => {
                let headers = vec![(":method", "GET"), (":path", "/ok"), (":authority", "api.test")];
                self.call = self.dispatch_http_call("api", headers, None, vec![], Duration::from_secs(1)).unwrap();
                return Action::Pause;
            }
            "ask-at-end" => return Action::Pause,
            _ => {}
        }
        Action::Continue
    }

    fn on_http_request_trailers(&mut self, _: usize) -> Action {
        if self.act == "trailers" {
            let told = self.get_http_request_trailer("x-told").unwrap_or_default();
            self.set_http_request_trailer("x-told", Some(&told.to_uppercase()));
            self.add_http_request_trailer("x-more", "1");
        }
        Action::Continue
    }

    fn on_http_response_headers(&mut self, count: usize, _: bool) -> Action {
        assert_eq!(self.get_http_response_headers().len(), count);
        match self.act.as_str() {
            "response" => {
                let status = self.get_http_response_header(":status").unwrap();
                self.set_http_response_header(":status", Some("202"));
                self.add_http_response_header("x-was", &status);
                self.set_http_response_header("x-kind", None);
            }
            "replace" => self.send_http_response(418, vec![("x-by", "guest")], Some(b"short and stout")),
            "gather-response" => return Action::Pause,
            "trap-response" => panic!("the guest lost its head on the way back"),
            _ => {}
        }
        Action::Continue
    }

    fn on_http_response_body(&mut self, size: usize, ended: bool) -> Action {
        let body = |this: &Self| this.get_http_response_body(0, size).unwrap_or_default();
        match self.act.as_str() {
            "gather-response" => {
                let body: Bytes = body(self);
                self.set_http_response_header("x-length", Some(&body.len().to_string()));
                self.set_http_response_body(0, size, &body.to_ascii_uppercase());
            }
            "shout-back" => self.set_http_response_body(0, size, &body(self).to_ascii_uppercase()),
            "hold-back" if !ended => return Action::Pause,
            _ => {}
        }
        Action::Continue
    }

    fn on_http_response_trailers(&mut self, _: usize) -> Action {
        if self.act == "trailers" {
            self.set_http_response_trailer("x-more", Some("2"));
        }
        Action::Continue
    }

    fn on_log(&mut self) {
        // Of an exchange that ended without a word nothing is known.
        let Some(path) = self.get_http_request_header(":path") else { return };
        let status = self.get_http_response_header(":status").unwrap_or_default();
        let line = format!("{path} {status}");
        self.set_shared_data("logged", Some(line.as_bytes()), None).unwrap();
    }
}
