//! The application that stories run in pods: servers and clients of every kind that matters to a mesh, driven over
//! standard input. It knows nothing of the mesh; what it reports is what its own sockets answer. Ends with its input.

mod client;
mod connections;
mod raw;
mod server;
mod storm;

use std::{
    io::{BufRead, Write},
    sync::Arc,
};

use mesh_tests::protocol::{Answer, Command, Reply, Request};

use crate::{connections::Connections, server::Servers};

/// What requests share.
#[derive(Default)]
struct State {
    servers: Servers,
    connections: Connections,
}

fn main() {
    let state = Arc::new(State::default());
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        let request: Request = match serde_json::from_str(&line) {
            Ok(request) => request,
            Err(error) => {
                eprintln!("not a request: {error}: {line}");
                std::process::exit(2);
            }
        };
        let state = Arc::clone(&state);
        std::thread::spawn(move || {
            let result = run(&state, request.command).map_err(|error| format!("{error:#}"));
            print(&Answer { id: request.id, result });
        });
    }
}

fn print(answer: &Answer) {
    let mut line = serde_json::to_vec(answer).expect("an answer is JSON");
    line.push(b'\n');
    if std::io::stdout().lock().write_all(&line).is_err() {
        // The story has gone.
        std::process::exit(0);
    }
}

fn run(state: &State, command: Command) -> anyhow::Result<Reply> {
    let connections = &state.connections;
    match command {
        Command::Listen(listen) => state.servers.listen(&listen),
        Command::Unlisten { server } => state.servers.unlisten(server),
        Command::Accepted { server } => state.servers.accepted(server),
        Command::Dial(dial) => Ok(Reply::Dialled(client::dial(&dial))),
        Command::Open(dial) => Ok(connections.open(&dial)),
        Command::Write { connection, text, times } => connections.write(connection, &text, times),
        Command::Read { connection, bytes } => connections.read(connection, bytes),
        Command::Names { connection } => connections.names(connection),
        Command::Finish { connection } => connections.finish(connection),
        Command::Close { connection, reset } => connections.close(connection, reset),
        Command::AwaitEnd { connection, limit_ms } => connections.await_end(connection, limit_ms),
        Command::Storm(storm) => Ok(Reply::Storm(storm::run(&storm))),
        Command::Transfer { to, bytes } => storm::transfer(to, bytes),
        Command::Datagram { to, text } => client::datagram(to, &text),
        Command::SpoofSyn { source, destination } => raw::spoof_syn(source, destination),
    }
}
