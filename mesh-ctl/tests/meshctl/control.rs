//! A control daemon's page of agents with fixed content, on a port of loopback.

use std::{
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
};

/// As `mesh-control` writes it: one agent in sync, one that is late, one that has refused a policy.
pub const PAGE: &str = r#"{"version": 12, "agents": [
  {"node": "node-a", "address": "10.0.0.11:40112", "version": 12, "has_answered": true, "refused": {}, "lag_ms": 0},
  {"node": "node-b", "address": "10.0.0.12:51344", "version": 11, "has_answered": false, "refused": {}, "lag_ms": 4200},
  {"node": "node-c", "address": null, "version": 12, "has_answered": true,
   "refused": {"type.googleapis.com/istio.security.Authorization": "shop/bad: no action"}, "lag_ms": 93000}
]}"#;

/// Serves one page, whatever is asked, until the process ends.
pub fn serve(status: &'static str, page: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            // A client that has gone needs no answer.
            let _ = stream.and_then(|stream| answer(stream, status, page));
        }
    });
    address
}

fn answer(mut stream: TcpStream, status: &str, page: &str) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{page}", page.len())
}
